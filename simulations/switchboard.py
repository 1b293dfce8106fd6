"""A switchboard between real peers: each is dialled at a door here, which passes on what is said, or holds it back.

    peer 0 --dials--> door of peer 1 --dials--> port of peer 1

Every peer announces its door in place of its port (`p2p.announce`), so that cards, identify and Kademlia tell nobody of
another way. Who dials is read from the system: the other end of the connection belongs to one of the peers' processes.
What is held back waits, in order, and connections stay open: so it looks where a network drops packets and TCP sends
them again. Network namespaces would need rights that a user has not, and exist on Linux only.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from trio_typing import TaskStatus

HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 64 * 1024
CHUNKS: Final = 64
"""On their way at once; a sender of more waits."""


class Line:
    """What one peer says to another: how late it arrives, and whether at all."""

    def __init__(self, rng: random.Random) -> None:
        """Free, without delay."""
        self._rng = rng
        self._free = trio.Event()
        self._free.set()
        self.delay_s = 0.0
        self.spread_s = 0.0
        """Up to so much more, drawn for each piece; pieces do not overtake each other."""
        self.passed_bytes = 0

    @property
    def is_held(self) -> bool:
        """Whether nothing arrives."""
        return not self._free.is_set()

    def hold(self) -> None:
        """From now on nothing arrives."""
        if not self.is_held:
            self._free = trio.Event()

    def release(self) -> None:
        """What was held arrives, and so does what comes after."""
        self._free.set()

    async def free(self) -> None:
        """Wait until it is not held."""
        while self.is_held:
            await self._free.wait()

    def due_s(self) -> float:
        """When a piece that is said now arrives, on trio's clock, unless it is held then."""
        return trio.current_time() + self.delay_s + self._rng.uniform(0.0, self.spread_s)


class Switchboard:
    """Doors of peers, and the lines between them. `run` until cancelled."""

    def __init__(
        self, ports: Sequence[int], caller_at: Callable[[int], Awaitable[int | None]], rng: random.Random
    ) -> None:
        """No door is open yet.

        Args:
            ports: where peer i listens.
            caller_at: which peer's process has the connection that comes from a local port; None: no peer's.
            rng: of delays.
        """
        self._ports = tuple(ports)
        self._caller_at = caller_at
        everybody = range(len(ports))
        self._lines = {(one, other): Line(rng) for one in everybody for other in everybody if one != other}
        self.doors: tuple[int, ...] = ()
        """Port of each peer's door, once open."""

    def line(self, speaker: int, hearer: int) -> Line:
        """What `speaker` says to `hearer`."""
        return self._lines[speaker, hearer]

    def part(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Hold back whatever two groups of peers say to each other."""
        other = tuple(other)
        for here in one:
            for there in other:
                self.line(here, there).hold()
                self.line(there, here).hold()

    def heal(self) -> None:
        """Hold nothing back."""
        for line in self._lines.values():
            line.release()

    def slow(self, delay_s: float, spread_s: float, *, peers: Iterable[int] | None = None) -> None:
        """From now on everything that these peers (or all) say or hear arrives so late."""
        slowed = set(range(len(self._ports)) if peers is None else peers)
        for (speaker, hearer), line in self._lines.items():
            if speaker in slowed or hearer in slowed:
                line.delay_s, line.spread_s = delay_s, spread_s

    def passed_bytes(self) -> int:
        """All that arrived so far, as it stands on the wire."""
        return sum(line.passed_bytes for line in self._lines.values())

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the doors, at ports that the system picks, and serve them until cancelled."""
        async with trio.open_nursery() as nursery:
            doors: list[int] = []
            for called in range(len(self._ports)):
                (listener,) = await trio.open_tcp_listeners(0, host=HOST)
                doors.append(listener.socket.getsockname()[1])
                nursery.start_soon(trio.serve_listeners, partial(self._connect, called), [listener])
            self.doors = tuple(doors)
            task_status.started()

    async def _connect(self, called: int, caller_end: trio.SocketStream) -> None:
        """Somebody dialled a door: carry what both say until one of them is gone."""
        async with caller_end:
            try:
                caller = await self._caller_at(caller_end.socket.getpeername()[1])
            except OSError:
                return  # gone already
            if caller is None or caller == called:
                return
            there, back = self.line(caller, called), self.line(called, caller)
            await there.free()
            await back.free()
            try:
                called_end = await trio.open_tcp_stream(HOST, self._ports[called])
            except OSError:
                return  # it does not run
            async with called_end, trio.open_nursery() as nursery:
                nursery.start_soon(_carry, caller_end, called_end, there, nursery.cancel_scope)
                nursery.start_soon(_carry, called_end, caller_end, back, nursery.cancel_scope)


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, line: Line, both: trio.CancelScope) -> None:
    """Carry one direction to its end; what breaks, breaks both, once that can be heard of."""
    said, heard = trio.open_memory_channel[tuple[float, bytes]](CHUNKS)

    async def hear() -> None:
        async with said:
            data = b"more"
            while data:
                data = await source.receive_some(CHUNK_BYTES)
                await said.send((line.due_s(), data))

    async def say() -> None:
        async for due_s, data in heard:
            await trio.sleep_until(due_s)
            await line.free()
            if data:
                line.passed_bytes += len(data)
                await sink.send_all(data)
            else:
                await sink.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            nursery.start_soon(say)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        await line.free()
        both.cancel()
