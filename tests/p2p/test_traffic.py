"""What a peer sends is counted by protocol, frame by frame, and shown as metrics."""

from __future__ import annotations

import random

import pytest
import trio
from prometheus_client import CollectorRegistry

from nsllm.canonical import Value
from nsllm.node.traffic_metrics import TrafficMetrics
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.memory import MemoryNetwork, MemoryWorld
from nsllm.p2p.memory_stream import CREDIT_BYTES, WINDOW_BYTES
from nsllm.p2p.traffic import Tally, Traffic

ECHO = "/nsllm/echo/1"


class Word(Value, frozen=True, kw_only=True):
    text: str


@pytest.mark.parametrize(
    ("data", "messages"),
    [(b"\0\0\0\0", 1), (b"\0\0\0\x02ab", 1), (b"\0\0\0\x02ab\0\0\0\0", 2), (b"\0\0\0\x01a" * 5, 5), (b"", 0)],
)
def test_frames_are_counted_one_by_one(data: bytes, messages: int) -> None:
    tally = Tally()
    tally.sent(data)
    assert (tally.messages, tally.sent_bytes) == (messages, len(data))


async def test_both_ends_count_what_they_send(autojump_clock: object) -> None:
    world = MemoryWorld(random.Random(1))
    asking, answering = MemoryNetwork(world, "a"), MemoryNetwork(world, "b", address="/memory/b")

    async def echo(stream) -> None:
        framed = FramedStream(stream, 1000)
        word = await framed.receive(Word)
        await framed.send_together([word, word])
        await framed.send_end()

    answering.handle(ECHO, echo)
    async with asking.run(), answering.run():
        await asking.connect("/memory/b/p2p/b")
        async with FramedStream(await asking.open("b", ECHO), 1000) as framed:
            await framed.send(Word(text="tide"))
            while await framed.receive_or_end(Word) is not None:
                pass
    asked, answered = asking.traffic.of(ECHO), answering.traffic.of(ECHO)
    assert (asked.streams, asked.messages) == (1, 1)
    assert (answered.streams, answered.messages) == (0, 3)
    assert answered.sent_bytes == 2 * asked.sent_bytes + 4


async def test_a_reader_grants_room_before_the_window_is_full(autojump_clock: object) -> None:
    """Credit comes in halves of a window: more than that goes through, and nobody waits for ever."""
    world = MemoryWorld(random.Random(1))
    sender, reader = MemoryNetwork(world, "a"), MemoryNetwork(world, "b", address="/memory/b")
    got = 0
    done = trio.Event()

    async def take(stream) -> None:
        nonlocal got
        while data := await stream.receive_some(CREDIT_BYTES - 1):
            got += len(data)
        done.set()

    reader.handle(ECHO, take)
    with trio.fail_after(60):
        async with sender.run(), reader.run():
            await sender.connect("/memory/b/p2p/b")
            stream = await sender.open("b", ECHO)
            for _ in range(5):
                await stream.send_all(bytes(WINDOW_BYTES - 1))
            await stream.aclose()
            await done.wait()
    assert got == 5 * (WINDOW_BYTES - 1)


def test_a_scrape_shows_the_counts() -> None:
    registry, traffic = CollectorRegistry(), Traffic(published=2, heard=3)
    metrics = TrafficMetrics(registry)
    traffic.of(ECHO).sent(b"\0\0\0\x02ab")
    traffic.of(ECHO).streams = 7
    metrics.watch(traffic)
    named = {"protocol": ECHO}
    assert registry.get_sample_value("nsllm_p2p_messages_sent_total", named) == 1
    assert registry.get_sample_value("nsllm_p2p_bytes_sent_total", named) == 6
    assert registry.get_sample_value("nsllm_p2p_streams_opened_total", named) == 7
    assert registry.get_sample_value("nsllm_p2p_announcements_total", {"direction": "heard"}) == 3
    assert registry.get_sample_value("nsllm_p2p_announcements_total", {"direction": "published"}) == 2
