"""Yamux: whole and in order whatever the window, ends told apart, and a peer that breaks its rules costs itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from trio.testing import MemoryReceiveStream, MockClock

from nsllm.p2p.libp2p_muxer import CREDIT_BYTES, HEADER, WINDOW_BYTES, WINDOW_WAIT_S, SteadyYamux

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class Secured:
    """What the muxer gets from noise: bytes in order, written at once. Frames that went out are kept."""

    def __init__(self, inbox: MemoryReceiveStream, outbox: MemoryReceiveStream, *, is_initiator: bool) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._closed = False
        self.is_initiator = is_initiator
        self.written: list[tuple[int, int, int, int, int]] = []

    async def read(self, n: int | None = None) -> bytes:
        assert n is None
        data = await self._inbox.receive_some(40_000)
        if not data:
            raise ConnectionClosedError("closed")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        if self._closed:
            raise ConnectionClosedError("closed")
        self.written.append(HEADER.unpack_from(data))
        self._outbox.put_data(data)
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        self._closed = True
        self._outbox.put_eof()
        await self._inbox.aclose()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[SteadyYamux, SteadyYamux]]:
    """Two ends of one connection, running."""
    to_one, to_other = MemoryReceiveStream(), MemoryReceiveStream()
    one = SteadyYamux(Secured(to_one, to_other, is_initiator=True), "other")
    other = SteadyYamux(Secured(to_other, to_one, is_initiator=False), "one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.handle_incoming)
        nursery.start_soon(other.handle_incoming)
        yield one, other
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw() -> AsyncIterator[tuple[SteadyYamux, Callable[[bytes], None]]]:
    """One end, and a way to send it bytes of any kind."""
    inbox = MemoryReceiveStream()
    end = SteadyYamux(Secured(inbox, MemoryReceiveStream(), is_initiator=True), "other")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.handle_incoming)
        yield end, inbox.put_data
        nursery.cancel_scope.cancel()


def frame(kind: int, flags: int, number: int, length: int, data: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, number, length) + data


def updates(end: SteadyYamux) -> list[tuple[int, int, int, int, int]]:
    return [header for header in end.secured_conn.written if header[1] == WINDOW_UPDATE and not header[2]]


async def read_all(stream: Any, size: int = 65536) -> bytes:
    got = bytearray()
    while True:
        try:
            got += await stream.read(size)
        except MuxedStreamEOF:
            return bytes(got)


@pytest.mark.parametrize("size", [1, 70_000, WINDOW_BYTES, 3 * WINDOW_BYTES + 17])
async def test_bytes_arrive_whole_and_in_order_both_ways(autojump_clock: MockClock, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    async with pair() as (one, other):
        ours = await one.open_stream()
        theirs = await other.accept_stream()
        got: dict[str, bytes] = {}

        async def send(stream: Any) -> None:
            await stream.write(data)
            await stream.close()

        async def receive(name: str, stream: Any) -> None:
            got[name] = await read_all(stream, 1000)

        async with trio.open_nursery() as nursery:
            for stream in (ours, theirs):
                nursery.start_soon(send, stream)
            nursery.start_soon(receive, "ours", ours)
            nursery.start_soon(receive, "theirs", theirs)
        await trio.testing.wait_all_tasks_blocked()
        assert got == {"ours": data, "theirs": data}
        assert one.streams == other.streams == {}
        assert one.stream_backlog_semaphore.value == other.stream_backlog_semaphore.value == 256


async def test_small_messages_cost_no_window_updates(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        ours = await one.open_stream()
        theirs = await other.accept_stream()
        for _ in range(CREDIT_BYTES // 1000):
            await ours.write(bytes(1000))
            await theirs.read(65536)
        assert updates(other) == []
        await ours.write(bytes(1000))
        await theirs.read(65536)
        (update,) = updates(other)
        assert update[4] >= CREDIT_BYTES


async def test_a_read_that_is_cancelled_has_taken_nothing(autojump_clock: MockClock) -> None:
    """Bytes and the end of somebody's patience may come at the same moment."""
    async with pair() as (one, other):
        ours = await one.open_stream()
        theirs = await other.accept_stream()
        await ours.write(b"there already")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as over:
            await theirs.read(65536)
        assert over.cancelled_caught
        with trio.fail_after(1):
            assert await theirs.read(65536) == b"there already"


async def test_credit_is_given_once_for_bytes_whose_read_was_cancelled(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        ours = await one.open_stream()
        theirs = await other.accept_stream()
        await ours.write(bytes(CREDIT_BYTES))
        await trio.testing.wait_all_tasks_blocked()
        write = other.secured_conn.write

        async def queue_and_wait(data: bytes) -> None:
            await write(data)
            await trio.sleep_forever()

        other.secured_conn.write = queue_and_wait
        with trio.move_on_after(1) as over:
            await theirs.read()
        assert over.cancelled_caught
        other.secured_conn.write = write
        assert await theirs.read() == bytes(CREDIT_BYTES)
        assert len(updates(other)) == 1
        await ours.write(bytes(CREDIT_BYTES))
        await trio.testing.wait_all_tasks_blocked()
        assert len(await theirs.read()) == CREDIT_BYTES
        assert sum(update[4] for update in updates(other)) == 2 * CREDIT_BYTES


async def test_streams_do_not_hold_each_other_up(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        full, free = await one.open_stream(), await one.open_stream()
        await other.accept_stream()
        theirs = await other.accept_stream()
        await full.write(bytes(WINDOW_BYTES))
        await free.write(b"through")
        assert await theirs.read(100) == b"through"


async def test_a_receiver_that_reads_nothing_costs_the_stream(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        stream = await one.open_stream()
        await other.accept_stream()
        began = trio.current_time()
        with pytest.raises(MuxedStreamError, match="no window"):
            await stream.write(bytes(WINDOW_BYTES + 1))
        assert trio.current_time() - began == pytest.approx(WINDOW_WAIT_S)


async def test_a_writer_wakes_when_the_window_opens(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        stream = await one.open_stream()
        theirs = await other.accept_stream()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(2 * WINDOW_BYTES))
            await trio.sleep(1)
            for _ in range(2 * WINDOW_BYTES // 65536):
                await theirs.read(65536)
        assert trio.current_time() - began == pytest.approx(1)


async def test_a_reset_ends_readers_and_writers(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        ours = await one.open_stream()
        theirs = await other.accept_stream()
        await ours.reset()
        with pytest.raises(MuxedStreamReset):
            await theirs.read(1)
        with pytest.raises(MuxedStreamError):
            await theirs.write(b"x")


async def test_a_broken_connection_ends_everything(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        stream, full = await one.open_stream(), await one.open_stream()
        await full.write(bytes(WINDOW_BYTES))
        ended: list[type[BaseException]] = []

        async def expect(work: Awaitable[Any]) -> None:
            with pytest.raises(MuxedStreamError) as caught:
                await work
            ended.append(caught.type)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, stream.read(1))
            nursery.start_soon(expect, full.write(b"x"))
            await trio.testing.wait_all_tasks_blocked()
            await other.secured_conn.close()
        assert len(ended) == 2
        with pytest.raises(MuxedConnUnavailable):
            await one.accept_stream()
        with pytest.raises(MuxedStreamError):
            await one.open_stream()
        assert one.is_closed


async def test_what_was_sent_before_the_end_is_still_read(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        ours = await one.open_stream()
        theirs = await other.accept_stream()
        await ours.write(b"last words")
        await ours.close()
        await theirs.close()
        await trio.testing.wait_all_tasks_blocked()
        assert await read_all(theirs, 3) == b"last words"
        assert other.streams == {}


@pytest.mark.parametrize(
    "frames",
    [
        [(DATA, 0, 1, WINDOW_BYTES + 1)],
        [(DATA, 0, 99, WINDOW_BYTES + 1)],
        [(DATA, 0, 1, 60_000)] * 5,
        [(9, 0, 0, 0)],
        [(GO_AWAY, 0, 0, 0)],
    ],
)
async def test_a_peer_that_breaks_the_rules_costs_its_connection(
    autojump_clock: MockClock, frames: list[tuple[int, int, int, int]]
) -> None:
    async with raw() as (end, send):
        await end.open_stream()
        for kind, flags, number, length in frames:
            send(frame(kind, flags, number, length, bytes(length) if length <= 60_000 else b""))
        await trio.testing.wait_all_tasks_blocked()
        assert end.is_closed
        assert end.streams == {}


async def test_frames_cut_anywhere_are_put_together(autojump_clock: MockClock) -> None:
    async with raw() as (end, send):
        frames = frame(WINDOW_UPDATE, SYN, 2, 0) + frame(DATA, 0, 2, 4, b"some") + frame(DATA, FIN, 2, 6, b" bytes")
        for byte in frames:
            send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert await read_all(await end.accept_stream()) == b"some bytes"


async def test_pings_are_answered_and_unknown_streams_ignored(autojump_clock: MockClock) -> None:
    async with raw() as (end, send):
        send(frame(PING, SYN, 0, 4711))
        send(frame(DATA, 0, 77, 3, b"abc"))
        send(frame(WINDOW_UPDATE, 0, 77, 3))
        await trio.testing.wait_all_tasks_blocked()
        assert end.secured_conn.written == [(0, PING, ACK, 0, 4711)]
        assert not end.is_closed


async def test_a_number_that_is_taken_is_refused(autojump_clock: MockClock) -> None:
    async with raw() as (end, send):
        for _ in range(2):
            send(frame(WINDOW_UPDATE, SYN, 2, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert [header[2] for header in end.secured_conn.written] == [ACK, RST]
