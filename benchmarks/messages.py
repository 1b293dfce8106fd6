"""Messages of real peers beside those of simulated ones: the same questions, counted by protocol and by kind.

Real peers are processes on loopback (`benchmarks.messages_peer`) over libp2p; simulated ones live in the world of
`nsllm sim`.
Both run whole peers of the same code, all of them validators, with a stand-in for the language model. Counting begins
when everybody is connected.

    python -m benchmarks.messages --json > simulations/data/messages.json
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.contestants.process import Process, planned
from benchmarks.messages_peer import Counts, Question, connected, play
from benchmarks.report import machine, table
from nsllm.clock import SystemClock
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import save_genesis
from nsllm.node.founding import found, founder
from nsllm.node.identity import open_identity
from nsllm.node.tcp_ports import choose
from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.questions import TOPICS
from nsllm.simulations.standin import stand_in_digest
from nsllm.simulations.virtual import run_virtual

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 23_000
PEERS: Final = 16
SECONDS: Final = 120.0
QUIET_S: Final = 30.0
"""At the end of the time nothing is asked, so that what was asked is anchored within it."""
REPEATS: Final = 4
"""One question of so many was asked before, of another peer."""
SETTLE_S: Final = 5.0

SAME: Final = ("blocks", "log entries")
"""What all peers have in common."""

Numbers = Mapping[str, int]


def script(peers: int, seconds: float, seed: int) -> list[Question]:
    """A question a peer, at random moments."""
    rng = random.Random(seed)
    moments = sorted(rng.uniform(0.0, seconds - QUIET_S) for _ in range(peers))
    questions: list[Question] = []
    for at_s, peer in zip(moments, rng.sample(range(peers), peers), strict=True):
        repeat = bool(questions) and rng.randrange(REPEATS) == 0
        text = rng.choice(questions).text if repeat else f"What should I know about {rng.choice(TOPICS)} {peer}?"
        questions.append(Question(round(at_s, 3), peer, text))
    return questions


def simulated(peers: int, questions: Sequence[Question], seconds: float, seed: int) -> Numbers:
    """What simulated peers sent, all together."""

    async def run() -> Numbers:
        with tempfile.TemporaryDirectory() as folder:
            network = SimulatedNetwork(peers, seed, Path(folder))
            async with trio.open_nursery() as nursery:
                for number in range(peers):
                    await network.start(nursery, number)
                running = network.running()
                for peer in running:
                    await connected(peer, peers - 1)
                await trio.sleep(SETTLE_S)
                began_s, counts = trio.current_time(), [Counts(peer) for peer in running]
                sources: list[str] = []

                async def ask(number: int) -> None:
                    sources.extend(await play(number, running[number], questions, began_s))

                async with trio.open_nursery() as asking:
                    for number in range(peers):
                        asking.start_soon(ask, number)
                await trio.sleep_until(began_s + seconds)
                taken = [each.taken() for each in counts]
                nursery.cancel_scope.cancel()
            return total(taken, sources)

    with quiet():
        return run_virtual(seed, run)


def real(peers: int, questions: Sequence[Question], seconds: float) -> Numbers:
    """What real peers sent, all together."""
    with _processes(peers) as processes:
        for process in processes:
            process.hear()
        print(f"{peers} peers connected", file=sys.stderr)
        trio.run(trio.sleep, SETTLE_S)
        plan = [asdict(question) for question in questions]
        for process in processes:
            process.tell("play", questions=plan, seconds=seconds)
        heard = [process.hear() for process in processes]
    heights = {answer["height"] for answer in heard}
    print(f"heights {sorted(heights)}", file=sys.stderr)
    return total([answer["counts"] for answer in heard], [source for answer in heard for source in answer["sources"]])


def total(taken: Sequence[Numbers], sources: Sequence[str]) -> Numbers:
    """Sums over all peers, but of what is the same everywhere."""
    sums: Counter[str] = Counter()
    for each in taken:
        sums.update(each)
    same = {name: max(each[name] for each in taken) for name in SAME}
    return {**sums, **same, "answers from the cache": sources.count("cache")}


def compared(ours: Numbers, theirs: Numbers) -> list[dict[str, Any]]:
    """A row for each name: real, simulated, simulated over real, and that for one block."""
    blocks = ours["blocks"] / theirs["blocks"] if ours["blocks"] and theirs["blocks"] else 1.0
    names = sorted({*ours, *theirs}, key=lambda name: (name not in SAME, ":" in name, name))
    rows: list[dict[str, Any]] = []
    for name in names:
        there, here = theirs.get(name, 0), ours.get(name, 0)
        ratio = here / there if there else None
        if there or here:
            rows.append(
                {
                    "counted": name,
                    "real": there,
                    "simulated": here,
                    "ratio": None if ratio is None else round(ratio, 3),
                    "per_block": None if ratio is None else round(ratio / blocks, 3),
                }
            )
    return rows


@contextmanager
def _processes(count: int) -> Iterator[list[Process]]:
    """Found a network in a temporary folder and run its peers until the block ends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started: list[subprocess.Popen[str]] = []
        try:
            yield [
                planned("benchmarks.messages_peer", f"peer-{plan['number']}", plan, folder, started)
                for plan in _plans(folder, count)
            ]
        finally:
            for process in started:
                process.kill()
            for process in started:
                process.wait()


def _plans(folder: Path, count: int) -> Iterator[Mapping[str, Any]]:
    identities = [open_identity(folder / f"peer-{number}") for number in range(count)]
    policy = default_policy(stand_in_digest("text"), stand_in_digest("encoder"))
    members = [founder(identity) for identity in identities]
    save_genesis(folder / "genesis.json", found("messages", members, policy, SystemClock().now_ms(), local=True))
    addresses = [f"/ip4/{HOST}/tcp/{port}" for port in choose(HOST, FIRST_PORT, count=count)]
    for number in range(count):
        yield {
            "number": number,
            "folder": str(folder / f"peer-{number}"),
            "genesis": str(folder / "genesis.json"),
            "listen": addresses[number],
            "bootstrap": [f"{addresses[0]}/p2p/{identities[0].peer_id}"] if number else [],
            "others": count - 1,
        }


def main() -> None:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.messages", description=__doc__)
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    about = machine()
    questions = script(options.peers, options.seconds, options.seed)
    ours = simulated(options.peers, questions, options.seconds, options.seed)
    theirs = real(options.peers, questions, options.seconds)
    result = {
        "machine": about,
        "peers": options.peers,
        "seconds": options.seconds,
        "questions": len(questions),
        "rows": compared(ours, theirs),
    }
    print(json.dumps(result, indent=1) if options.json else table(result["rows"]))


if __name__ == "__main__":
    main()
