"""One peer of the message comparison: a whole peer, told its part of the script, whose messages are counted.

Real ones are processes: the peer's own composition root over libp2p, with everything on disk. As in a simulation a
stand-in takes the language model's place and says so. A process reads one JSON object a line (its plan first, then
tasks) and answers each with one.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from nsllm.clock import SystemClock
from nsllm.consensus.message import decode_message
from nsllm.consensus.observation_message import decode_observation
from nsllm.governance.genesis import load_genesis
from nsllm.node.config import P2pConfig, PeerConfig
from nsllm.node.data_folder import Settled
from nsllm.node.identity import open_identity
from nsllm.node.peer import Peer, calm_collector
from nsllm.node.world import World
from nsllm.offload import ThreadOffload
from nsllm.p2p.libp2p_network import Libp2pNetwork
from nsllm.plugins.inline import InlinePluginHost
from nsllm.simulations.questions import ask
from nsllm.simulations.standin import StandInEngine

WAIT_S: Final = 180.0
"""Until everybody is connected; sixteen processes start on two cores."""


@dataclass(frozen=True)
class Question:
    """One line of the script."""

    at_s: float
    """After the beginning."""
    peer: int
    text: str


class Counts:
    """What one running peer sent since this object was made."""

    def __init__(self, peer: Peer) -> None:
        self._traffic = peer.parts._world.network.traffic  # noqa: SLF001 - counted where it is sent
        self._before = self._now()
        self._kinds: Counter[str] = Counter()
        self._ledger = peer.ledger
        self._before_blocks, self._before_records = peer.ledger.height, peer.ledger.log_size
        mesh = peer.parts._mesh  # noqa: SLF001
        send = mesh.send

        def counted(to: Any, kind: Any, payload: bytes) -> None:
            self._kinds[f"mesh: {_kind(kind, payload)}"] += 1
            send(to, kind, payload)

        mesh.send = counted  # type: ignore[method-assign]

    def taken(self) -> dict[str, int]:
        """By name: frames of each protocol, streams opened, mesh messages of each kind, announcements, blocks."""
        grown = self._now()
        grown.subtract(self._before)
        return {
            **grown,
            **self._kinds,
            "blocks": self._ledger.height - self._before_blocks,
            "log entries": self._ledger.log_size - self._before_records,
        }

    def _now(self) -> Counter[str]:
        found: Counter[str] = Counter({"announcements heard": self._traffic.heard})
        for protocol, tally in self._traffic.protocols.items():
            name = protocol.split("/")[2]
            found[f"{name}: frames"] = tally.messages
            found[f"{name}: streams"] = tally.streams
            found["bytes in frames"] += tally.sent_bytes
        return found


def _kind(kind: str, payload: bytes) -> str:
    if kind == "consensus":
        return type(decode_message(payload)).__name__
    return type(decode_observation(payload)).__name__ if kind == "observation" else kind


async def connected(peer: Peer, others: int) -> None:
    """Return once hellos were exchanged with so many."""
    network, directory = peer.parts._world.network, peer.parts.directory  # noqa: SLF001
    with trio.fail_after(WAIT_S):
        while sum(directory.card_of(other) is not None for other in network.connected()) < others:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def play(number: int, peer: Peer, questions: Iterable[Question], began_s: float) -> list[str]:
    """Ask what the script has for this peer, at its time; the source of each answer."""
    sources: list[str] = []
    for question in questions:
        if question.peer == number:
            await trio.sleep_until(began_s + question.at_s)
            sources.append((await ask(number, peer, question.text)).source)
    return sources


async def opened(plan: Mapping[str, Any]) -> Peer:
    """A whole peer over libp2p with a stand-in for the language model, not running yet."""
    folder = Path(plan["folder"])
    identity = open_identity(folder)
    listen = P2pConfig(listen=(plan["listen"],), bootstrap=tuple(plan["bootstrap"]))
    config = PeerConfig(data_dir=folder, home=folder, name=folder.name, visibility="public", p2p=listen)
    genesis = load_genesis(Path(plan["genesis"]))
    world = World(
        clock=SystemClock(),
        offload=ThreadOffload(),
        rng=random.Random(identity.libp2p_secret),
        network=Libp2pNetwork(secret=identity.libp2p_secret, listen=listen.listen, local=True),
        engine=StandInEngine(),
        plugins=InlinePluginHost(),
        services=(),
        folder=folder,
        serve_api=False,
    )
    return await Peer.open(Settled(config=config, identity=identity, genesis=genesis, founded=False), world)


@asynccontextmanager
async def running(plan: Mapping[str, Any]) -> AsyncGenerator[Peer]:
    """The peer of a plan, running and connected to all others; stopped with the block."""
    peer = await opened(plan)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        await connected(peer, plan["others"])
        calm_collector()
        yield peer
        nursery.cancel_scope.cancel()


async def tasks() -> AsyncGenerator[Mapping[str, Any]]:
    """What standard input says to do, one JSON object a line, until it ends."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield json.loads(line)


def answer(values: Mapping[str, Any]) -> None:
    """One line to whoever asked."""
    print(json.dumps(values), flush=True)


async def serve(plan: Mapping[str, Any]) -> None:
    """Run, and do what standard input says."""
    async with running(plan) as peer:
        answer({"ready": os.getpid()})
        async for task in tasks():
            began_s, counts = trio.current_time(), Counts(peer)
            questions = [Question(**question) for question in task["questions"]]
            sources = await play(plan["number"], peer, questions, began_s)
            await trio.sleep_until(began_s + task["seconds"])
            answer({"counts": counts.taken(), "sources": sources, "height": peer.ledger.height})


if __name__ == "__main__":
    trio.run(serve, json.loads(sys.stdin.readline()))
