"""Blame: everything of a quiet sender, little of a loud one."""

from __future__ import annotations

import logging

from nsllm.consensus.blame import AT_ONCE, EVERY_S, Blame
from nsllm.consensus.errors import VoteError
from nsllm.consensus.events import PeerBlamed

LOUD, QUIET = bytes([1] * 20), bytes([2] * 20)


def test_a_loud_sender_is_told_of_now_and_then(caplog):
    caplog.set_level(logging.WARNING)
    told = []
    blame = Blame(told.append)
    for number in range(10_000):
        blame.tell(LOUD, VoteError(f"number {number}"), number * EVERY_S / 1_000)
    assert AT_ONCE + 9 <= len(told) <= AT_ONCE + 10
    assert told[0] == PeerBlamed(LOUD, "bad_vote", "number 0")
    assert len(caplog.records) == len(told)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(int(line.rpartition("passed_over=")[2]) for line in lines) > 8_900, "what was passed over is counted"
    blame.tell(QUIET, VoteError("one"), 10.0)
    blame.tell(None, VoteError("a source's"), 10.0)
    assert [event.sender for event in told[-2:]] == [QUIET, None]


def test_after_a_pause_all_is_told_again():
    told = []
    blame = Blame(told.append)
    for now_s in (0.0, 2 * AT_ONCE * EVERY_S):
        for _ in range(2 * AT_ONCE):
            blame.tell(LOUD, VoteError("again"), now_s)
    assert len(told) == 2 * AT_ONCE
