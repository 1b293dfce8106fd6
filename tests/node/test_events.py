"""Events reach every reader in order; a slow reader loses its oldest, nobody waits for it, and nobody forges a line."""

from __future__ import annotations

import logging

from nsllm.clock import TrioClock
from nsllm.node.events import QUEUE_LIMIT, EventBus


async def test_readers_and_taps_hear_everything_in_order(autojump_clock) -> None:
    bus = EventBus(TrioClock(5_000))
    tapped: list[str] = []
    bus.tap(lambda event: tapped.append(event.kind))
    bus.emit("before")
    async with bus.subscribe() as one, bus.subscribe() as other:
        bus.emit("first", number=1)
        bus.emit("second", number=2)
        for reader in (one, other):
            event = await reader.receive()
            assert (event.kind, event.at_ms, event.fields) == ("first", 5_000, {"number": 1})
            assert (await reader.receive()).kind == "second"
    bus.emit("after")
    assert tapped == ["before", "first", "second", "after"]


async def test_a_slow_reader_loses_its_oldest_events_and_holds_up_nobody() -> None:
    bus = EventBus(TrioClock(0))
    async with bus.subscribe() as slow, bus.subscribe() as quick:
        for number in range(QUEUE_LIMIT + 10):
            bus.emit("tick", number=number)
            assert quick.receive_nowait().fields["number"] == number
        got = [slow.receive_nowait().fields["number"] for _ in range(QUEUE_LIMIT)]
        assert got == list(range(10, QUEUE_LIMIT + 10))


async def test_a_reader_that_left_is_forgotten() -> None:
    bus = EventBus(TrioClock(0))
    async with bus.subscribe():
        pass
    assert not bus._readers
    bus.emit("tick")


async def test_a_peers_words_stay_on_their_line_of_the_log(caplog) -> None:
    bus = EventBus(TrioClock(0))
    with caplog.at_level(logging.INFO):
        bus.emit("submission_refused", record="ab12", reason="full\nwithheld completion=forged", again=None)
    assert caplog.messages == ["submission_refused record=ab12 reason='full\\nwithheld completion=forged' again=None"]
