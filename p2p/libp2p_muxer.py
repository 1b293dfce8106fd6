"""Yamux for the libp2p host, with the frames' way made short: one read fills many frames, a write is one frame.

Wire format and life of streams are the library's (yamux specification, github.com/hashicorp/yamux, spec.md). Its own
loop costs several turns of the scheduler a frame, answers every read with a window update, and looks for a window that
has run out a hundred times a second. Here frames are taken apart where they lie, credit is given back when half a
window was read, and whoever waits for a window is woken. A peer that sends more than a window costs its connection.
"""

from __future__ import annotations

import logging
import struct
from typing import Any, Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux as library
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

log = logging.getLogger(__name__)

HEADER: Final = struct.Struct(library.YAMUX_HEADER_FORMAT)
WINDOW_BYTES: Final = 256 * 1024
"""What a stream's other end may send before we have read it; never grows: streams are many, and peers strangers."""
CREDIT_BYTES: Final = WINDOW_BYTES // 2
"""What was read is given back as credit in portions of this size."""
MAX_DATA_BYTES: Final = 65_535 - 16 - HEADER.size
"""A frame fits one noise message, so that frames of different writers never mix."""
WINDOW_WAIT_S: Final = 5.0
"""A receiver that reads nothing for so long costs the stream."""
CONNECTION_ERRORS: Final = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class SteadyMuxedStream(YamuxStream):  # type: ignore[misc] # the library is untyped to mypy
    """One stream; one task reads it, and one at a time writes."""

    def __init__(self, stream_id: int, conn: SteadyYamux, is_initiator: bool) -> None:
        super().__init__(stream_id, conn, is_initiator)
        self._read_bytes = 0
        """Read since credit was given last."""
        self.credit = trio.Event()
        """Set when the window grew, or the stream ended."""

    async def write(self, data: bytes) -> None:
        """Send all of `data`.

        Raises:
            MuxedStreamError: the stream or its connection is gone, or its receiver reads nothing.
        """
        sent = 0
        while sent < len(data):
            await self._writable()
            size = min(self.send_window, MAX_DATA_BYTES, len(data) - sent)
            self.send_window -= size
            frame = HEADER.pack(0, library.TYPE_DATA, 0, self.stream_id, size) + data[sent : sent + size]
            await self.conn._write_frame(frame)  # noqa: SLF001 - of the same file
            sent += size

    async def read(self, n: int | None = -1) -> bytes:
        """What has come, at most `n` bytes; waits for the first. A read that is cancelled has taken nothing.

        Raises:
            MuxedStreamEOF: nothing more will come.
            MuxedStreamReset: aborted by the other end, or with the connection.
        """
        conn, number = self.conn, self.stream_id
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (buffer := conn.stream_buffers.get(number)):
            if self.reset_received:
                raise MuxedStreamReset("stream was reset")
            if buffer is None or self.recv_closed or conn.event_shutting_down.is_set():
                raise MuxedStreamEOF("stream is closed for receiving")
            conn.stream_events[number] = came = trio.Event()
            await came.wait()
        size = len(buffer) if n is None or n < 0 else min(n, len(buffer))
        await self._give_credit(size)
        data = bytes(buffer[:size])
        del buffer[:size]
        self._read_bytes += size
        if self.closed and not buffer:
            conn._finalize_stream_locked(self, fully_closed=True)  # noqa: SLF001 - its lock guards what never waits here
        return data

    async def _give_credit(self, size: int) -> None:
        """Before `size` bytes are read; if the read is cancelled here, they have been given back already."""
        given = self._read_bytes + size
        if given >= CREDIT_BYTES and not self.recv_closed:
            self._read_bytes = -size
            self.recv_window += given
            await self.send_window_update(given)

    async def _writable(self) -> None:
        """Return once a window is open."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.send_window > 0 and not (self.send_closed or self.closed):
            return  # as a rule: no need of a deadline
        with trio.move_on_after(WINDOW_WAIT_S):
            while True:
                if self.send_closed or self.closed:
                    raise MuxedStreamError("stream is closed for sending")
                if self.send_window > 0:
                    return
                self.credit = trio.Event()
                await self.credit.wait()
        raise MuxedStreamError(f"no window within {WINDOW_WAIT_S} s")


class SteadyYamux(Yamux):  # type: ignore[misc] # the library is untyped to mypy
    """One connection's streams; the library's swarm starts and closes it."""

    next_stream_id: int
    _rtt: float

    async def _write_frame(self, data: bytes) -> None:
        """Encrypt and queue one frame; both happen at once, so frames leave whole and in order."""
        await self.secured_conn.write(data)

    async def open_stream(self) -> SteadyMuxedStream:
        """A new stream of ours.

        Raises:
            MuxedStreamError: the connection is gone.
        """
        await self.stream_backlog_semaphore.acquire()
        if self.event_shutting_down.is_set():
            self.stream_backlog_semaphore.release()
            raise MuxedStreamError("connection is shutting down")
        number, self.next_stream_id = self.next_stream_id, self.next_stream_id + 2
        stream = self._add(number, ours=True)
        stream._owns_backlog_slot = True  # noqa: SLF001 - given back by the library
        try:
            await self._write_frame(HEADER.pack(0, library.TYPE_WINDOW_UPDATE, library.FLAG_SYN, number, 0))
        except CONNECTION_ERRORS as error:
            await self._finalize_stream(stream, fully_closed=True)
            raise MuxedStreamError(f"cannot open a stream: {error}") from error
        return stream

    async def handle_incoming(self) -> None:
        """Take frames until the connection ends, then end all streams. Called by the library."""
        buffer = bytearray()
        try:
            while not self.event_shutting_down.is_set():
                buffer += await self.secured_conn.read(None)
                position = 0
                while len(buffer) - position >= HEADER.size:
                    header = HEADER.unpack_from(buffer, position)
                    kind, length = header[1], header[4]
                    body = position + HEADER.size
                    end = body + length if kind == library.TYPE_DATA else body
                    if end - body > WINDOW_BYTES:
                        raise MuxedStreamError(f"a frame of {length} bytes, more than any window")
                    if end > len(buffer):
                        break
                    await self._take(header, bytes(buffer[body:end]))
                    position = end
                del buffer[:position]
        except CONNECTION_ERRORS as error:
            log.debug("connection_ended peer=%s error=%s: %s", self.peer_id, type(error).__name__, error)
        except Exception as error:  # what noise cannot decrypt; a mistake of ours costs one peer, too
            trace = log.isEnabledFor(logging.DEBUG)
            log.warning("connection_failed peer=%s error=%s", self.peer_id, type(error).__name__, exc_info=trace)
        # The loop that cleans up does not wait for anybody: shielded, because its nursery may be cancelled already.
        with trio.CancelScope(shield=True):
            await self._cleanup_on_error()

    async def _cleanup_on_error(self) -> None:
        """End all streams and close the connection."""
        streams = list(self.streams.values())
        await super()._cleanup_on_error()
        for stream in streams:
            stream.credit.set()

    async def _take(self, header: tuple[int, int, int, int, int], data: bytes) -> None:
        _, kind, flags, number, length = header
        if kind in (library.TYPE_DATA, library.TYPE_WINDOW_UPDATE):
            if flags & library.FLAG_SYN and not await self._accept(number, flags):
                return
            stream = self.streams.get(number)
            if stream is None:
                return  # closed by us; what was under way is of no use
            if kind == library.TYPE_WINDOW_UPDATE:
                stream.send_window += length
                stream.credit.set()
            elif data:
                self._put(stream, data)
            if flags & (library.FLAG_FIN | library.FLAG_RST):
                self._end(stream, reset=bool(flags & library.FLAG_RST))
        elif kind == library.TYPE_PING:
            await self._ping(flags, length)
        elif kind == library.TYPE_GO_AWAY:
            raise MuxedStreamError(f"the peer goes away, reason {length}")
        else:
            raise MuxedStreamError(f"a frame of unknown type {kind}")

    async def _accept(self, number: int, flags: int) -> bool:
        """A stream of the peer's; False if its number is taken."""
        if number in self.streams:
            await self._write_frame(HEADER.pack(0, library.TYPE_WINDOW_UPDATE, library.FLAG_RST, number, 0))
            return False
        stream = self._add(number, ours=False)
        if not flags & library.FLAG_RST:
            await self._write_frame(HEADER.pack(0, library.TYPE_WINDOW_UPDATE, library.FLAG_ACK, number, 0))
        await self.new_stream_send_channel.send(stream)
        return True

    def _add(self, number: int, *, ours: bool) -> SteadyMuxedStream:
        stream = self.streams[number] = SteadyMuxedStream(number, self, ours)
        self.stream_buffers[number] = bytearray()
        self.stream_events[number] = trio.Event()
        return stream

    def _put(self, stream: SteadyMuxedStream, data: bytes) -> None:
        stream.recv_window -= len(data)
        if stream.recv_window < 0:
            raise MuxedStreamError(f"stream {stream.stream_id} got {-stream.recv_window} bytes more than its window")
        self.stream_buffers[stream.stream_id] += data
        self.stream_events[stream.stream_id].set()

    def _end(self, stream: SteadyMuxedStream, *, reset: bool) -> None:
        stream.recv_closed = True
        if reset:
            stream.reset_received = stream.send_closed = True
        stream.closed = stream.send_closed
        self.stream_events[stream.stream_id].set()
        stream.credit.set()
        if stream.closed:
            self._finalize_stream_locked(stream, fully_closed=True)

    async def _ping(self, flags: int, value: int) -> None:
        if flags & library.FLAG_SYN:
            await self._write_frame(HEADER.pack(0, library.TYPE_PING, library.FLAG_ACK, 0, value))
        elif flags & library.FLAG_ACK:
            round_trip = trio.current_time() - self._ping_sent_time
            self._rtt = (self._rtt + round_trip) / 2 if self._rtt else round_trip
            self._ping_event.set()


def install(muxers: Any) -> None:
    """Make a host's `MuxerMultistream` use `SteadyYamux`: for yamux it asks nobody which class to take."""

    async def new_conn(secured: Any, peer_id: Any) -> Any:
        protocol, muxer = await muxers._selector.select(secured, secured.is_initiator, muxers.negotiate_timeout)  # noqa: SLF001
        return muxers._annotate_connection(muxer(secured, peer_id), secured, protocol)  # noqa: SLF001

    muxers.new_conn = new_conn
