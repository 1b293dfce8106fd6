"""Attendance: who is seen, when a window is over, who leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.consensus.attendance import MIN_VALIDATORS, MINUTE_MS, TURNS, Attendance
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Address


def validators(count):
    return ValidatorSet(epoch=0, members=tuple(Address(bytes([i] * 20)) for i in range(count)))


def test_a_minute_counts_if_something_is_decided_in_it() -> None:
    attendance = Attendance.begin(7, 1_000)
    for time_ms, minutes in ((2_000, 0), (60_999, 0), (61_000, 1), (61_001, 1), (120_999, 1), (3_721_000, 2)):
        attendance = attendance.after(time_ms, ())
        assert attendance.minutes == minutes, "an hour without a block is one minute"
    assert attendance.since == 7


def test_a_window_needs_its_minutes_and_everybodys_turns() -> None:
    four = validators(4)
    attendance = Attendance(since=10, minutes=3)
    assert attendance.is_over(10 + TURNS * 4, four, 3)
    assert not attendance.is_over(10 + TURNS * 4 - 1, four, 3)
    assert not attendance.is_over(1_000, four, 4)


def test_what_is_no_news_changes_nothing() -> None:
    attendance = Attendance.begin(0, 0).after(1, [b"\2" * 20])
    assert attendance.seen == (b"\2" * 20,)
    assert attendance.after(MINUTE_MS - 1, [b"\2" * 20]) is attendance
    assert attendance.after(2, [b"\1" * 20]).seen == (b"\1" * 20, b"\2" * 20)


@pytest.mark.parametrize(
    ("present", "size", "appointed", "leave"),
    [(3, 4, 4, 0), (4, 5, 5, 1), (5, 7, 7, 2), (4, 7, 7, 2), (5, 6, 7, 1), (4, 5, 7, 0), (7, 10, 10, 3), (1, 1, 1, 0)],
)
def test_how_many_leave(present, size, appointed, leave) -> None:
    """The first by address of those that are silent; one of seven is away already in two of the rows."""
    members = validators(size).members
    gone = Attendance(seen=members[size - present :]).leaving(validators(size), appointed)
    assert gone == members[:leave]


@given(st.integers(1, 40), st.integers(0, 20), st.data())
def test_nobody_who_was_seen_leaves_and_enough_remain(size, away, data) -> None:
    group = validators(size)
    seen = tuple(sorted(data.draw(st.sets(st.sampled_from(group.members)))))
    gone = Attendance(seen=seen).leaving(group, size + away)
    assert not set(gone) & set(seen)
    assert len(gone) <= group.faults
    assert not gone or size - len(gone) >= MIN_VALIDATORS
    assert not gone or away + len(gone) <= (size + away - 1) // 3
    assert len(gone) == size - len(seen) or len(gone) == group.faults or away + len(gone) >= (size + away - 1) // 3 or (
        size - len(gone) == MIN_VALIDATORS
    )  # fmt: skip
