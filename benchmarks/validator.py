"""One validator of the consensus benchmark: a real peer's parts without engine, cache and API, told what to do.

It is put together by the peer's own composition root and runs what agreement needs: libp2p, presence, mesh, examiner,
driver, ledger and audit log, with everything on disk as in a peer. A stand-in takes the language model's place, says so
wherever a model is named, and gives every answer a score at once: what is measured is agreement.

As a process it reads one JSON object a line (its plan first, then tasks) and answers each with one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.cpu_split import CpuSplit
from nsllm.clock import SystemClock
from nsllm.consensus.block import DecidedBlock
from nsllm.governance.genesis import load_genesis
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.ports import JUDGED_TOKENS, Claim, Likelihood, Trace
from nsllm.ids import PeerId, Ppm
from nsllm.node.agreement import describe
from nsllm.node.config import P2pConfig, PeerConfig
from nsllm.node.data_folder import Settled
from nsllm.node.identity import open_identity
from nsllm.node.parts import Parts
from nsllm.node.peer import calm_collector
from nsllm.node.stores import Stores
from nsllm.node.world import World
from nsllm.offload import ThreadOffload
from nsllm.p2p.libp2p_network import Libp2pNetwork
from nsllm.p2p.libp2p_transport import SteadyStream
from nsllm.p2p.protocols.submit import MAX_BATCH, Submitter
from nsllm.plugins.inline import InlinePluginHost
from nsllm.record import EMBEDDING_DIMENSIONS, Message, Record, Request, Sampling, SignedRecord, sign_record
from nsllm.simulations.standin import NAME, StandInEngine, stand_in_digest

IDLE_PARTS: Final = {"publisher", "keeper", "restocker", "stocktaking", "embeddings", "cache", "membership"}
"""Parts of a peer that are not agreement: they carry records to their holders, and the benchmark does not run them."""
ANSWER: Final = "An answer of a few dozen words, such as a small model gives. " * 4
WAIT_S: Final = 60.0
RETRY_S: Final = 0.2
"""Until a refused record is submitted again."""
WARM_S: Final = 1.0
"""Of a load, before anything is counted: nothing has come through yet."""
TURN: Final = 8
LIKELIHOOD: Final = Likelihood(mean_logprob=-1.0, tokens=16, head_logprob=-1.0)
PROMPT_TOKENS: Final = tuple(range(100, 120))
ANSWER_TOKENS: Final = tuple(range(1000, 1064))
SAMPLING: Final = Sampling(temperature_micro=200_000, top_p_micro=900_000, seed=1, max_tokens=64)
EMBEDDING: Final = b"\x7f" + bytes(EMBEDDING_DIMENSIONS - 1)


class Judge(StandInEngine):
    """A stand-in that takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self._read = 0

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """The same unit vector for every text."""
        return [(1.0, *[0.0] * (EMBEDDING_DIMENSIONS - 1))] * len(texts)

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """The same for every answer."""
        del most_tokens
        return [LIKELIHOOD] * len(items)

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """No token of any answer strains; its likelihoods come along, as the scorer model's own reading has them.

        Here others have their turn, once every few records.
        """
        del beside
        self._read += 1
        if self._read % TURN == 0:
            await trio.lowlevel.checkpoint()
        return Trace(len(claim.token_ids), likelihood=LIKELIHOOD, beside=LIKELIHOOD)


class Scorers(InlinePluginHost):
    """Scores that depend on the answer, and cost nothing."""

    async def score(self, item: AnswerItem) -> dict[str, Ppm]:
        """Numbers out of a digest."""
        numbers = hashlib.sha256(item.question.encode()).digest()
        names = ("coherence", "relevance", "safety", "support")
        return {name: Ppm(500_000 + 1_000 * numbers[index]) for index, name in enumerate(names)}


@dataclass(frozen=True)
class Place:
    """Where a validator of the benchmark lives."""

    folder: Path
    genesis: Path
    listen: str
    bootstrap: tuple[str, ...]


class BenchValidator:
    """The parts of one peer, and what the benchmark counts."""

    def __init__(self, settled: Settled, world: World, stores: Stores) -> None:
        self._world = world
        self._key = settled.identity.member
        self._validators = len(settled.genesis.members)
        self.stores = stores
        self.parts = Parts(settled, world, stores)
        self._submitter = Submitter(world.network)
        self._made = 0
        self.decisions = 0
        self.records = 0
        self.messages = 0
        self.message_bytes = 0
        mesh = self.parts._mesh  # noqa: SLF001 - counted where it is sent
        send = mesh.send

        def counted(to: Any, kind: Any, payload: bytes) -> None:
            self.messages += 1
            self.message_bytes += len(payload)
            send(to, kind, payload)

        mesh.send = counted  # type: ignore[method-assign]
        stores.ledger.subscribe(self._decided)
        self.parts._keeper.keep = lambda _signed: None  # type: ignore[method-assign]  # noqa: SLF001 - it does not run

    def _decided(self, decided: DecidedBlock) -> None:
        self.decisions += 1
        self.records += int(describe(decided)["records"] or 0)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery, self._world.network.run():
            nursery.start_soon(self.parts.agreement.run)
            for name, task in self.parts.running():
                if name not in IDLE_PARTS:
                    nursery.start_soon(task)
            task_status.started()
            await trio.sleep_forever()

    async def connected(self) -> None:
        """Return once hellos were exchanged with everybody."""
        with trio.fail_after(WAIT_S):
            while len(self._peers()) < self._validators - 1:  # noqa: ASYNC110 - nobody tells of it
                await trio.sleep(0.05)

    def record(self) -> SignedRecord:
        """A new answer of ours, signed."""
        self._made += 1
        network, question = self.parts.context.network_id, f"Question {self._made} of {self._key.address.hex()}?"
        request = Request(
            model=NAME,
            model_digest=stand_in_digest("text"),
            messages=(Message(role="user", content=question),),
            sampling=Sampling(),
        )
        return sign_record(
            self._key,
            Record(
                network=network,
                request=request,
                generator=self._key.address,
                visibility="public",
                sampling=SAMPLING,
                prompt_token_ids=PROMPT_TOKENS,
                token_ids=ANSWER_TOKENS,
                text=ANSWER,
                finish_reason="stop",
                embedding=EMBEDDING,
                created_ms=self._world.clock.now_ms(),
            ),
        )

    async def publish(self, records: Sequence[SignedRecord]) -> float:
        """Seconds from handing the records to all validators until their certificates are held, on disk."""
        began = time.perf_counter()
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                for peer in self._peers():
                    nursery.start_soon(self._submit, peer, records)
                for record in records:
                    self._accept(record)
                for record in records:
                    await self.stores.ledger.proofs.wait_certified(record)
                nursery.cancel_scope.cancel()
        return time.perf_counter() - began

    async def _submit(self, peer: PeerId, records: Sequence[SignedRecord]) -> None:
        """Until the peer has taken all: one whose desk is full, because it lags behind, is asked again."""
        while records:
            verdicts = await self._submitter.submit(peer, records)
            records = [signed for signed in records if verdicts[signed.record.digest()] is not None]
            if records:
                await trio.sleep(RETRY_S)

    async def one_by_one(self, count: int, pause_s: float, rng: random.Random) -> list[float]:
        """Latencies of `count` answers, in seconds; the next one comes some time after the last was certified."""
        found = []
        for _ in range(count):
            await trio.sleep(rng.uniform(0, 2 * pause_s))
            found.append(await self.publish([self.record()]))
        return found

    async def load(self, seconds: float, batch: int, lanes: int) -> list[dict[str, float]]:
        """Keep `lanes` batches of answers under way; counters when the first have come through, and `seconds` later."""
        until_s = trio.current_time() + WARM_S + seconds
        looks: list[dict[str, float]] = []

        async def lane() -> None:
            while trio.current_time() < until_s:
                await self.publish([self.record() for _ in range(batch)])

        async with trio.open_nursery() as nursery:
            for _ in range(lanes):
                nursery.start_soon(lane)
            for at_s in (until_s - seconds, until_s):
                await trio.sleep_until(at_s)
                looks.append(self.counted())
        return looks

    def counted(self) -> dict[str, float]:
        """Counters so far."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "decisions": self.decisions,
            "records": self.records,
            "messages": self.messages,
            "message_bytes": self.message_bytes,
            "wire_bytes": WIRE["bytes"],
            "writes": WIRE["writes"],
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "at_s": time.perf_counter(),
        }

    def _accept(self, record: SignedRecord) -> None:
        examiner = self.parts.examiner  # as the publisher does with its own records
        assert examiner is not None
        if (reason := examiner.accept(record)) is not None:
            raise SystemExit(f"a record was refused: {reason}")

    def _peers(self) -> list[Any]:
        network, directory = self._world.network, self.parts.directory
        return [peer for peer in network.connected() if directory.card_of(peer) is not None]


WIRE: Final = {"bytes": 0, "writes": 0}


def count_wire() -> None:
    """Count what goes into TCP, encrypted and framed."""
    write = SteadyStream.write

    async def counted(self: SteadyStream, data: bytes) -> None:
        WIRE["bytes"] += len(data)
        WIRE["writes"] += 1
        await write(self, data)

    SteadyStream.write = counted  # type: ignore[method-assign]


async def opened(place: Place) -> BenchValidator:
    """A validator over libp2p, not running yet."""
    identity = open_identity(place.folder)
    config = PeerConfig(
        data_dir=place.folder,
        home=place.folder,
        name=place.folder.name,
        visibility="public",
        p2p=P2pConfig(listen=(place.listen,), bootstrap=place.bootstrap),
    )
    settled = Settled(config=config, identity=identity, genesis=load_genesis(place.genesis), founded=False)
    world = World(
        clock=SystemClock(),
        offload=ThreadOffload(),
        rng=random.Random(identity.libp2p_secret),
        network=Libp2pNetwork(secret=identity.libp2p_secret, listen=(place.listen,), local=True),
        engine=Judge(),
        plugins=Scorers(),
        services=(),
        folder=place.folder,
        serve_api=False,
    )
    return BenchValidator(settled, world, await Stores.open(settled, world))


async def serve(place: Place) -> None:
    """Run, and do what standard input says."""
    count_wire()
    split = CpuSplit()
    validator = await opened(place)
    rng = random.Random(place.folder.name)
    async with trio.open_nursery() as nursery:
        await nursery.start(validator.run)
        await validator.connected()
        calm_collector()
        answer({"ready": os.getpid()})
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            task: Mapping[str, Any] = json.loads(line)
            match task["do"]:
                case "one_by_one":
                    answer({"latencies_s": await validator.one_by_one(task["count"], task["pause_s"], rng)})
                case "load":
                    batch = min(task["batch"], MAX_BATCH)
                    answer({"looks": await validator.load(task["seconds"], batch, task["lanes"])})
                case "split":
                    split.start()
                    answer({})
                case "whole":
                    answer({"seconds": split.stop()})
                case "counted":
                    answer(validator.counted())
        nursery.cancel_scope.cancel()


def answer(values: Mapping[str, Any]) -> None:
    """One line to whoever asked."""
    print(json.dumps(values), flush=True)


def main() -> None:
    """Read the plan, and serve."""
    plan = json.loads(sys.stdin.readline())
    place = Place(Path(plan["folder"]), Path(plan["genesis"]), plan["listen"], tuple(plan["bootstrap"]))
    trio.run(serve, place)


if __name__ == "__main__":
    main()
