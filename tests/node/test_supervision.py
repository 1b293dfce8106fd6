"""A part that fails by a fault of ours is run again; anything else ends the peer."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from nsllm.clock import SystemClock
from nsllm.errors import OwnFault, PeerFault
from nsllm.node.events import EventBus
from nsllm.node.supervision import PAUSE_S, keep_going, own_fault

GROUP = BaseExceptionGroup("nursery", [OwnFault("disk")])


@pytest.mark.parametrize("fault", [OwnFault("disk"), GROUP, BaseExceptionGroup("nursery", [GROUP])])
async def test_a_part_goes_on_after_our_own_fault(autojump_clock, fault: BaseException):
    runs: list[float] = []
    told: list[str] = []
    events = EventBus(SystemClock())
    events.tap(lambda event: told.append(f"{event.kind} {event.fields['part']} {event.fields['reason']}"))

    async def part() -> None:
        runs.append(trio.current_time())
        if len(runs) < 3:
            raise fault

    await keep_going("Publisher", part, events)
    assert [after - before for before, after in pairwise(runs)] == [PAUSE_S, PAUSE_S]
    assert told == ["part_failed Publisher disk"] * 2


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), PeerFault("theirs"), BaseExceptionGroup("both", [OwnFault("disk"), ValueError("a bug")])],
)
async def test_anything_else_goes_through(error: BaseException):
    async def part() -> None:
        raise error

    with pytest.raises(type(error)):
        await keep_going("Publisher", part, EventBus(SystemClock()))


async def test_cancellation_ends_it(autojump_clock):
    with trio.move_on_after(3) as scope:
        await keep_going("Publisher", trio.sleep_forever, EventBus(SystemClock()))
    assert scope.cancelled_caught


def test_no_fault_is_seen_where_there_is_none():
    assert own_fault(ValueError()) is None
    assert own_fault(BaseExceptionGroup("nursery", [KeyboardInterrupt()])) is None
