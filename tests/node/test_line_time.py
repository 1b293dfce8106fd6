"""Times to wait: none where nobody is, the pace of the last ones where somebody is, never a guess from idle hours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.node.line_time import FORESIGHT, REMEMBERED, LineTime


def played(line, *moves):
    """A line after `+` (one comes), `-` (one passes) and `x` (one gives up) at their times."""
    for sign, at_s in moves:
        if sign == "+":
            line.enter(at_s)
        else:
            line.leave(at_s, passed=sign == "-")
    return line


@pytest.mark.parametrize(
    ("moves", "ahead", "now_s", "wait_s"),
    [
        ((), 0, 5.0, 0.0),
        ((), 9, 5.0, 0.0),  # nobody knows
        ((("+", 0.0),), 3, 4.0, 12.0),  # nobody has passed: each takes as long as is known
        ((("+", 0.0), ("-", 2.0)), 0, 9.0, 0.0),
        ((("+", 0.0), ("-", 2.0)), 3, 9.0, 6.0),
        ((("+", 0.0), ("-", 2.0), ("+", 100.0), ("-", 104.0)), 2, 200.0, 6.0),  # idle time counts for nothing
        ((("+", 0.0), ("+", 0.0), ("-", 2.0), ("-", 4.0)), 2, 4.0, 4.0),
        ((("+", 0.0), ("+", 0.0), ("-", 1.0)), 1, 1.5, 1.0),
        ((("+", 0.0), ("+", 0.0), ("-", 1.0)), 1, 9.0, 9.0),  # the next one takes longer than usual
        ((("+", 0.0), ("x", 3.0), ("+", 3.0), ("-", 4.0)), 1, 4.0, 4.0),  # who gives up has cost time
    ],
)
def test_one_after_the_other(moves, ahead, now_s, wait_s):
    assert played(LineTime(), *moves).wait_s(ahead, now_s) == pytest.approx(wait_s)


def test_those_who_are_served_together_slow_each_other_down_as_far_as_that_was_seen():
    alone = played(LineTime(at_once=True), ("+", 0.0), ("-", 2.0))
    assert alone.wait_s(1, 2.0) == 2.0
    assert alone.wait_s(64, 2.0) == FORESIGHT * 2.0
    crowd = LineTime(at_once=True)
    for _ in range(40):
        crowd.enter(0.0)
    for number in range(8):
        crowd.leave(1.0 + number)
    seen = sum(range(33, 41)) / 8
    assert crowd.wait_s(200, 8.0) == pytest.approx(FORESIGHT * seen)


@given(st.integers(1, 40), st.floats(0.1, 10), st.booleans())
def test_at_a_steady_pace_the_last_of_a_line_waits_for_all(count, pace_s, at_once):
    line = LineTime(at_once=at_once)
    for _ in range(count + REMEMBERED):
        line.enter(0.0)
    for number in range(REMEMBERED):
        line.leave((number + 1) * pace_s)
    assert line.inside == count
    assert line.wait_s(line.inside, REMEMBERED * pace_s) == pytest.approx(count * pace_s)


@given(st.lists(st.tuples(st.sampled_from("+-x"), st.floats(0, 9)), max_size=40), st.booleans())
def test_more_ahead_never_wait_less(moves, at_once):
    line, now_s = LineTime(at_once=at_once), 0.0
    for sign, gone_s in moves:
        now_s += gone_s
        if sign == "+" or line.inside:
            played(line, (sign, now_s))
    waits = [line.wait_s(ahead, now_s) for ahead in range(20)]
    assert waits == sorted(waits)
    assert waits[0] == 0
