"""Whole peers on virtual time: the composition root over an in-memory network, with the stand-in model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from nsllm.node.peer import Peer
from nsllm.node.service import ChatCommand, ChatDelta, ChatFinished, ChatStarted, Visibility
from nsllm.record import Message, Sampling
from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.virtual import run_virtual


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
    ) -> Answer:
        command = ChatCommand(
            model=model,
            messages=(Message(role="user", content=text),),
            sampling=sampling or Sampling(),
            visibility=visibility,
            reuse=reuse,
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


@pytest.fixture
def on_stage(tmp_path: Path) -> Callable[..., None]:
    """Run `play(stage)` on virtual time with a network of `peers`, all started unless told otherwise."""

    def run(play: Callable[[Stage], Awaitable[None]], *, peers: int = 4, start: tuple[int, ...] | None = None) -> None:
        async def main() -> None:
            network = SimulatedNetwork(peers, 1, tmp_path)
            async with trio.open_nursery() as nursery:
                stage = Stage(network, nursery)
                for number in range(peers) if start is None else start:
                    await network.start(nursery, number)
                await stage.until(lambda: all(peer.readiness().ready for peer in stage.peers))
                with trio.fail_after(3600):
                    await play(stage)
                nursery.cancel_scope.cancel()

        with quiet():
            run_virtual(1, main)

    return run
