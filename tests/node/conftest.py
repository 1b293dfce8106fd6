"""Whole peers on virtual time (`on_stage`), and the makings of one peer's parts (`cast`)."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from nsllm import canonical, merkle
from nsllm.clock import TrioClock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.certified import CertifiedRecord, Inclusion
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.observation import DimensionScore, Quartiles, ScoreLeaf
from nsllm.governance.defaults import default_policy
from nsllm.ids import ZERO_DIGEST, Digest
from nsllm.node.chat import ChatCommand, ChatDelta, ChatFinished, ChatStarted
from nsllm.node.context import PeerContext
from nsllm.node.events import EventBus
from nsllm.node.founding import found, founder
from nsllm.node.identity import new_identity
from nsllm.node.peer import Peer
from nsllm.node.views import PeerEvent
from nsllm.offload import InlineOffload
from nsllm.record import Message, Record, Request, Sampling, SignedRecord, Visibility, request_key, sign_record
from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.virtual import run_virtual, seeded


@dataclass
class Answer:
    started: ChatStarted
    finished: ChatFinished
    text: str


@dataclass
class Stage:
    """A simulated network in a test's hands."""

    network: SimulatedNetwork
    nursery: trio.Nursery
    seen: list[str] = field(default_factory=list)

    @property
    def peers(self) -> list[Peer]:
        return self.network.running()

    async def start(self, *numbers: int) -> None:
        for number in numbers:
            await self.network.start(self.nursery, number)
        await self.until(lambda: all(peer.readiness().quorum for peer in self.peers))

    async def until(self, holds: Callable[[], bool], within_s: float = 120) -> None:
        with trio.fail_after(within_s):
            while not holds():
                await trio.sleep(0.05)

    async def ask(
        self,
        peer: Peer,
        text: str,
        *,
        visibility: Visibility | None = None,
        sampling: Sampling | None = None,
        model: str = "default",
        reuse: bool = True,
        semantic: bool = True,
    ) -> Answer:
        command = ChatCommand(
            model=model,
            messages=(Message(role="user", content=text),),
            sampling=sampling or Sampling(),
            visibility=visibility,
            reuse=reuse,
            semantic=semantic,
        )
        async with peer.chat(command) as channel:
            events = [event async for event in channel]
        started, *deltas, finished = events
        assert isinstance(started, ChatStarted)
        assert isinstance(finished, ChatFinished)
        assert all(isinstance(delta, ChatDelta) for delta in deltas)
        return Answer(started, finished, "".join(delta.text for delta in deltas))

    async def anchored(self, peer: Peer, answer: Answer) -> None:
        with trio.fail_after(120):
            while (await peer.receipt(answer.started.completion_id)).state != "anchored":
                await trio.sleep(0.1)


@dataclass
class Cast:
    """A network of four members, seen by its first; `told` is what that one emitted."""

    context: PeerContext
    identities: list
    told: list[PeerEvent] = field(default_factory=list)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]

    def record(
        self,
        question: str = "why?",
        *,
        by: int = 0,
        text: str = "because",
        visibility: str = "public",
        embedding: bytes = b"\x7f" + bytes(383),
    ) -> SignedRecord:
        record = Record(
            network=self.context.network_id,
            request=self.request(question),
            generator=self.identities[by].address,
            visibility=visibility,
            sampling=Sampling(temperature_micro=0),
            prompt_token_ids=(1,),
            token_ids=(2, 3),
            text=text,
            finish_reason="stop",
            embedding=embedding,
            salt=bytes(32) if visibility == "group" else b"",
            created_ms=1_000,
        )
        return sign_record(self.identities[by].member, record)

    def request(self, question: str) -> Request:
        message = Message(role="user", content=question)
        return Request(model="tiny", model_digest=ZERO_DIGEST, messages=(message,), sampling=Sampling())

    def key(self, question: str = "why?") -> Digest:
        return request_key(self.context.network_id, self.request(question))

    def certified(self, signed: SignedRecord, *, ppm: int = 900_000, signers: int = 3) -> CertifiedRecord:
        network, validators = self.context.network_id, self.context.validators
        rubric = self.context.policy.rubric
        leaf = ScoreLeaf(
            record=signed.record.digest(),
            generator=signed.record.generator,
            request_key=signed.record.key(),
            rubric=rubric.digest(),
            scores=tuple(DimensionScore(name=name, ppm=ppm) for name in rubric.dimensions),
            quartiles=tuple(Quartiles(lower_ppm=ppm, upper_ppm=ppm) for _ in rubric.dimensions),
            observers=validators.members,
        )
        hashed = merkle.leaf_hash(canonical.encode(leaf))
        header = Header(
            epoch=0,
            height=1,
            time_ms=2_000,
            parent=Digest(network),
            proposer=validators.members[0],
            body_digest=ZERO_DIGEST,
            scores_root=merkle.root([hashed]),
            log_size=1,
            log_root=hashed,
            state_root=ZERO_DIGEST,
            validators_hash=validators.digest(),
            policy_digest=ZERO_DIGEST,
            registry_hash=ZERO_DIGEST,
        )
        digest = precommit_digest(network, 0, 1, 0, header.id())
        keys = {identity.address: identity.member for identity in self.identities}
        votes = tuple(
            Precommit(validator=address, signature=keys[address].sign(digest))
            for address in validators.members[:signers]
        )
        return CertifiedRecord(
            signed=signed,
            leaf=leaf,
            inclusion=Inclusion(index=0, size=1, path=()),
            certificate=Certificate(header=header, round=0, precommits=votes),
        )


class Founding:
    """The standing of a network in its first epoch."""

    def __init__(self, genesis) -> None:
        self.registry = genesis.registry()
        self.validators = self.registry.validators()
        self.policy = genesis.policy

    def validators_of(self, epoch):
        return self.validators if epoch == 0 else None

    def policy_of(self, epoch):
        return self.policy if epoch == 0 else None


@pytest.fixture
def cast() -> Cast:
    """The makings of one peer's parts: context with recorded events, signed and certified records."""
    identities = [new_identity(seeded(7, number).randbytes) for number in range(4)]
    policy = default_policy(Digest(b"\1" * 32), Digest(b"\2" * 32))
    genesis = found("cast", [founder(identity) for identity in identities], policy, 1_000, local=True)
    clock = TrioClock(1_000)
    context = PeerContext(
        genesis=genesis,
        network_id=genesis.network_id(),
        standing=Founding(genesis),
        key=identities[0].member,
        clock=clock,
        offload=InlineOffload(),
        rng=random.Random(7),
        events=EventBus(clock),
    )
    cast = Cast(context, identities)
    context.events.tap(cast.told.append)
    return cast


@pytest.fixture
def on_stage(tmp_path: Path) -> Callable[..., None]:
    """Run `play(stage)` on virtual time with a network of `peers`, all started unless told otherwise."""

    def run(play: Callable[[Stage], Awaitable[None]], *, peers: int = 4, start: tuple[int, ...] | None = None) -> None:
        async def main() -> None:
            network = SimulatedNetwork(peers, 1, tmp_path, on_disk=True)
            async with trio.open_nursery() as nursery:
                stage = Stage(network, nursery)
                for number in range(peers) if start is None else start:
                    await network.start(nursery, number)
                await stage.until(lambda: all(peer.readiness().ready for peer in stage.peers))
                others = len(network.running()) - 1
                await stage.until(lambda: all(len(p.parts.directory.member_cards()) >= others for p in stage.peers))
                with trio.fail_after(3600):
                    await play(stage)
                nursery.cancel_scope.cancel()

        with quiet():
            run_virtual(1, main)

    return run
