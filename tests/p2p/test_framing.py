"""Frames: bounded before they are read, canonical, ended explicitly."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.ids import PeerId
from nsllm.p2p.errors import FrameError, StreamClosedError
from nsllm.p2p.framing import FramedStream


class Note(Value, frozen=True, kw_only=True):
    number: int
    text: bytes = b""


class ScriptedStream:
    """Hands out prepared chunks, then ends; keeps what is sent."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)
        self.sent = b""
        self.fate = "open"
        self.reads = 0

    @property
    def peer(self) -> PeerId:
        return PeerId("them")

    async def send_all(self, data: bytes) -> None:
        self.sent += data

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        self.reads += 1
        return self.chunks.pop(0)[:max_bytes] if self.chunks else b""

    async def aclose(self) -> None:
        self.fate = "closed"

    async def reset(self) -> None:
        self.fate = "reset"


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@given(numbers=st.lists(st.integers(0, 2**40), max_size=6), cuts=st.lists(st.integers(1, 7), min_size=1))
def test_frames_survive_any_cutting(numbers: list[int], cuts: list[int]) -> None:
    wire = b"".join(frame(canonical.encode(Note(number=number))) for number in numbers) + bytes(4)
    chunks = []
    while wire:
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(wire[:size])
        wire = wire[size:]

    async def read() -> list[int]:
        framed = FramedStream(ScriptedStream(*chunks), 1000)
        got = []
        while (note := await framed.receive_or_end(Note)) is not None:
            got.append(note.number)
        return got

    assert trio.run(read) == numbers


async def test_what_is_sent_is_what_is_received() -> None:
    stream = ScriptedStream()
    framed = FramedStream(stream, 1000)
    await framed.send(Note(number=1, text=b"x"))
    await framed.send_end()
    back = FramedStream(ScriptedStream(stream.sent), 1000)
    assert await back.receive(Note) == Note(number=1, text=b"x")
    assert await back.receive_or_end(Note) is None


async def test_a_frame_that_claims_a_gigabyte_is_refused_before_it_is_read() -> None:
    stream = ScriptedStream((1 << 30).to_bytes(4, "big"), b"x" * 1000)
    with pytest.raises(FrameError, match="1073741824 bytes, the limit is 1000"):
        await FramedStream(stream, 1000).receive(Note)
    assert stream.reads == 1


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        (b"", StreamClosedError),
        (b"\0\0", FrameError),
        (frame(canonical.encode(Note(number=1)))[:-1], FrameError),
        (frame(b"\xff\xff"), FrameError),
        (frame(canonical.encode(Note(number=1)) + b"\0"), FrameError),
        (frame(b"\x82\xa6number\xcc\x01\xa4text\xc4\x00"), FrameError),
        (frame(canonical.pack({"number": 1, "text": b"", "extra": 1})), FrameError),
        (frame(canonical.pack({"number": "1", "text": b""})), FrameError),
        (bytes(4), FrameError),
    ],
    ids=["ended", "header cut", "body cut", "garbage", "trailing", "not minimal", "unknown field", "type", "end frame"],
)
async def test_refused(wire: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await FramedStream(ScriptedStream(wire), 1000).receive(Note)


async def test_a_message_beyond_the_limit_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="at most 10"):
        await FramedStream(ScriptedStream(), 10).send(Note(number=1, text=bytes(20)))


async def test_a_cancelled_receive_can_be_repeated(autojump_clock: trio.testing.MockClock) -> None:
    wire = frame(canonical.encode(Note(number=5)))
    arrived = trio.Event()

    class Slow(ScriptedStream):
        async def receive_some(self, max_bytes: int = 65536) -> bytes:
            if len(self.chunks) == 1:
                await arrived.wait()
            return await super().receive_some(max_bytes)

    framed = FramedStream(Slow(wire[:6], wire[6:]), 1000)
    with trio.move_on_after(1) as scope:
        await framed.receive(Note)
    assert scope.cancelled_caught
    arrived.set()
    assert await framed.receive(Note) == Note(number=5)


@pytest.mark.parametrize("fails", [False, True])
async def test_leaving_the_block_closes_or_resets(fails: bool) -> None:
    stream = ScriptedStream()
    try:
        async with FramedStream(stream, 10):
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert stream.fate == ("reset" if fails else "closed")


async def test_nothing_may_come_where_the_end_is_waited_for() -> None:
    await FramedStream(ScriptedStream(), 10).wait_end()
    with pytest.raises(FrameError):
        await FramedStream(ScriptedStream(b"x"), 10).wait_end()
