"""Lines: streams that stay open between two questions, because to open one costs more than to ask.

A line carries one question at a time and its answer, to its end frame. Whoever asks hangs up first; a line that broke
meanwhile costs another one, not the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import trio

from nsllm.ids import PeerId
from nsllm.p2p.errors import StreamClosedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream
from nsllm.p2p.protocols.dialogue import within

T = TypeVar("T")

IDLE_S: Final = 300.0
"""A line that was not used for so long is not used again."""
LISTEN_S: Final = 330.0
"""How long the other side waits for a member's next question; longer than `IDLE_S`, so that both seldom meet."""
LISTEN_TO_STRANGERS_S: Final = 10.0
KEPT_EACH: Final = 2
"""Idle lines to one peer."""
KEPT: Final = 64
"""Idle lines altogether; the one that was idle longest goes first."""


class Lines:
    """One protocol's lines of one peer."""

    def __init__(self, network: Network, protocol: str, limit_bytes: int) -> None:
        """No line yet.

        Args:
            network: to open streams on.
            protocol: whose handler listens on, such as `/nsllm/fetch/1`.
            limit_bytes: largest frame in either direction.
        """
        self._network = network
        self._protocol = protocol
        self._limit_bytes = limit_bytes
        self._idle: list[tuple[float, FramedStream]] = []
        """Since when, and the line; the newest last."""

    async def ask(self, peer: PeerId, talk: Callable[[FramedStream], Awaitable[T]], *, deadline_s: float) -> T:
        """What `talk` makes of the answer to one question.

        Args:
            peer: who is asked.
            talk: sends the question and reads the whole answer; asked again on a new line if an old one was dead.
            deadline_s: for all of it.

        Raises:
            DeadlineError: it took longer.
            UnreachableError, ProtocolRefusedError: see `Network.open`; and what `talk` raises.
        """
        with within(peer, self._protocol, deadline_s):
            kept = await self._take(peer)
            if kept is not None:
                try:
                    return await self._talk(kept, talk)
                except StreamClosedError:
                    pass  # it broke while it was idle
            return await self._talk(
                FramedStream(await self._network.open(peer, self._protocol), self._limit_bytes), talk
            )

    async def _talk(self, line: FramedStream, talk: Callable[[FramedStream], Awaitable[T]]) -> T:
        try:
            answer = await talk(line)
        except BaseException:
            await line.reset()
            raise
        self._idle.append((trio.current_time(), line))
        await self._hang_up()
        return answer

    async def _take(self, peer: PeerId) -> FramedStream | None:
        """The line to `peer` that was used last."""
        await self._hang_up()
        for at in range(len(self._idle) - 1, -1, -1):
            if self._idle[at][1].peer == peer:
                return self._idle.pop(at)[1]
        return None

    async def _hang_up(self) -> None:
        """Close what is idle for too long, and what is too much."""
        edge_s, kept, over = trio.current_time() - IDLE_S, list[tuple[float, FramedStream]](), list[FramedStream]()
        each: dict[PeerId, int] = {}
        for since_s, line in reversed(self._idle):
            each[line.peer] = each.get(line.peer, 0) + 1
            if since_s <= edge_s or each[line.peer] > KEPT_EACH or len(kept) == KEPT:
                over.append(line)
            else:
                kept.append((since_s, line))
        self._idle = kept[::-1]
        for line in over:
            await line.aclose()


async def questions(stream: Stream, limit_bytes: int, *, listen_s: float = LISTEN_S) -> AsyncIterator[FramedStream]:
    """The listening side: the line, each time that a question begins to come; ends when none comes for `listen_s`."""
    framed = FramedStream(stream, limit_bytes)
    while True:
        with trio.move_on_after(listen_s) as quiet:
            try:
                await framed.wait_begin()
            except StreamClosedError:
                return
        if quiet.cancelled_caught:
            return
        yield framed
