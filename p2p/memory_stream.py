"""In-memory connections and streams: ordered bytes with a window, an end, and a reset, over a world's links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.ids import PeerId
from nsllm.p2p.errors import StreamClosedError
from nsllm.p2p.traffic import Traffic

WINDOW_BYTES: Final = 256 * 1024
"""Unread bytes that one direction of a stream holds before `send_all` waits; yamux's initial window."""
CREDIT_BYTES: Final = WINDOW_BYTES // 2
"""Read bytes after which a receiver tells its sender that there is room again, as yamux does."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What a stream end needs of its world."""

    peer: PeerId
    post: Callable[[PeerId, PeerId, Callable[[], None]], None]
    trace: Callable[[str, PeerId, PeerId, str, bytes], None]
    traffic: Traffic


class Connection:
    """Two peers' streams; broken at one end first, at the other when the news arrives."""

    def __init__(self, dialler: Wire, listener: Wire) -> None:
        self._wires = {dialler.peer: (dialler, listener), listener.peer: (listener, dialler)}
        self._ends: dict[PeerId, dict[int, MemoryStream]] = {dialler.peer: {}, listener.peer: {}}
        self._number = 0

    def open(self, opener: PeerId, protocol: str) -> tuple[MemoryStream, MemoryStream]:
        """A new stream: (opener's end, other end)."""
        mine, other = self._wires[opener]
        self._number += 1
        ours = MemoryStream(self, self._number, mine, other.peer, protocol)
        theirs = MemoryStream(self, self._number, other, mine.peer, protocol)
        ours.pair(theirs)
        theirs.pair(ours)
        self._ends[mine.peer][self._number] = ours
        self._ends[other.peer][self._number] = theirs
        return ours, theirs

    def break_end(self, peer: PeerId) -> None:
        """The connection is gone as far as `peer` knows."""
        for stream in list(self._ends[peer].values()):
            stream.break_off()
        self._ends[peer].clear()

    def forget(self, peer: PeerId, number: int) -> None:
        """A stream end is finished."""
        self._ends[peer].pop(number, None)


class MemoryStream:
    """One end of a stream; implements `nsllm.p2p.network.Stream`."""

    def __init__(self, connection: Connection, number: int, wire: Wire, peer: PeerId, protocol: str) -> None:
        self._connection = connection
        self._number = number
        self._wire = wire
        self._peer = peer
        self.protocol = protocol
        self._tally = wire.traffic.of(protocol)
        self._other: MemoryStream = self
        self._inbox = bytearray()
        self._unread_bytes = 0
        """Sent by us and, as far as we were told, not yet read by the other end."""
        self._read_bytes = 0
        """Read by us since we last told the other end."""
        self._ended = False
        self._closed = False
        self._broken = False
        self._accepted: bool | None = None
        self._change = trio.Event()

    def pair(self, other: MemoryStream) -> None:
        """Join the two ends."""
        self._other = other

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._peer

    async def send_all(self, data: bytes) -> None:
        """See `Stream.send_all`; waits while the other end leaves a window full unread."""
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while True:
            if self._broken or self._closed:
                raise StreamClosedError(f"stream {self.protocol} to {self._peer} is closed")
            room = WINDOW_BYTES - self._unread_bytes
            if room <= 0:
                await self._wait_change()
                continue
            chunk = bytes(view[:room])
            view = view[room:]
            self._unread_bytes += len(chunk)
            self._post(lambda chunk=chunk: self._other._arrive(chunk))  # type: ignore[misc]  # noqa: SLF001
            if not view:
                self._tally.sent(data)
                return

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See `Stream.receive_some`."""
        if self._inbox:
            await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self._ended or self._broken or self._closed:
                await trio.lowlevel.checkpoint()
                return b""
            await self._wait_change()
        data = bytes(self._inbox[:max_bytes])
        del self._inbox[:max_bytes]
        self._read_bytes += len(data)
        if self._read_bytes >= CREDIT_BYTES and not self._broken:
            size, self._read_bytes = self._read_bytes, 0
            self._post(lambda: self._other._credit(size))  # noqa: SLF001
        return data

    async def aclose(self) -> None:
        """Close both directions."""
        if not self._closed and not self._broken:
            self._post(self._other._end)  # noqa: SLF001
        self._finish()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Abort; the other end sees the stream end, as in libp2p, and loses what it had not read."""
        if not self._closed and not self._broken:
            self._post(self._other.break_off)
        self._inbox.clear()
        self._finish()
        await trio.lowlevel.checkpoint()

    def break_off(self) -> None:
        """The other end, or the connection, is gone."""
        self._broken = True
        self._connection.forget(self._wire.peer, self._number)
        self._wake()

    def answered(self, accepted: bool) -> None:
        """The other end serves the protocol, or does not."""
        self._accepted = accepted
        self._wake()

    async def verdict(self) -> bool | None:
        """What `answered` said; None if the stream broke before."""
        while self._accepted is None and not self._broken:
            await self._wait_change()
        return self._accepted

    def _post(self, action: Callable[[], None]) -> None:
        self._wire.post(self._wire.peer, self._peer, action)

    def _arrive(self, chunk: bytes) -> None:
        if self._broken or self._closed:
            self._wire.trace("dropped", self._peer, self._wire.peer, self.protocol, chunk)
            return
        self._wire.trace("data", self._peer, self._wire.peer, self.protocol, chunk)
        self._inbox += chunk
        self._wake()

    def _credit(self, size: int) -> None:
        self._unread_bytes -= size
        self._wake()

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _finish(self) -> None:
        self._closed = True
        self._connection.forget(self._wire.peer, self._number)
        self._wake()

    async def _wait_change(self) -> None:
        self._change = trio.Event() if self._change.is_set() else self._change
        await self._change.wait()

    def _wake(self) -> None:
        self._change.set()
