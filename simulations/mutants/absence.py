"""Directed absences: whoever leaves must have been away for a whole window, and enough must remain."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nsllm.consensus.attendance import MIN_VALIDATORS, MINUTE_MS, TURNS, Attendance, shown_in
from nsllm.consensus.batch import BatchCommit, Excerpt, SignedCommit
from nsllm.consensus.block import Body
from nsllm.governance.block_rules import BlockRules
from nsllm.governance.log_entry import governance_entry
from nsllm.governance.motion import GovernanceTransaction, Motion, Suspend, approve
from nsllm.ids import ZERO_DIGEST, Epoch, Signature, TimeMs
from nsllm.simulations.mutants.holds import holds
from nsllm.simulations.mutants.made import START_MS, make_genesis, make_keys, make_set

MINUTES: Final = 2


def standing_still_is_no_absence() -> None:
    """An hour goes by without a block."""
    before = Attendance.begin(0, START_MS)
    after = before.after(TimeMs(START_MS + 3_600_000), ())
    holds(after.minutes == 1, f"an hour without a block counts as {after.minutes} minutes")


def everybody_has_turns() -> None:
    """Blocks come a minute apart."""
    validators = make_set(make_keys(7))
    attendance = Attendance(since=0, minutes=MINUTES)
    holds(not attendance.is_over(TURNS * 7 - 1, validators, MINUTES), "a window ends before everybody had its turns")
    holds(attendance.is_over(TURNS * 7, validators, MINUTES), "a window ends")


def enough_remain() -> None:
    """All are silent but one, in networks of all sizes, of which some validators are away already."""
    for appointed in range(1, 20):
        faults = (appointed - 1) // 3
        for away in range(faults + 1):
            validators = make_set(make_keys(appointed - away))
            gone = len(Attendance(seen=validators.members[-1:]).leaving(validators, appointed))
            left = validators.size - gone
            holds(gone <= validators.faults, f"{gone} of {validators.size} leave at once")
            holds(not gone or left >= MIN_VALIDATORS, f"{left} validators remain")
            holds(not gone or gone + away <= faults, f"{gone + away} of {appointed} validators are away")


def who_shows_itself_stays() -> None:
    """One proposes and never observes, one observes and never proposes, the rest is silent."""
    keys = make_keys(7)
    validators = make_set(keys)
    commit = BatchCommit(
        validator=keys[0].address, epoch=Epoch(0), number=1, rubric=ZERO_DIGEST, records=b"", commitments=b""
    )
    body = Body(batches=(Excerpt(signed=SignedCommit(commit=commit, signature=Signature(bytes(65))), rows=b""),))
    attendance = Attendance.begin(0, START_MS).after(START_MS, shown_in(body, keys[1].address))
    gone = attendance.leaving(validators, validators.size)
    holds(keys[0].address not in gone, "a validator leaves whose observations blocks hold")
    holds(keys[1].address not in gone, "a validator leaves that proposed")
    holds(gone == validators.members[2:4], "two of those that are silent leave")


def every_epoch_begins_a_window() -> None:
    """A motion ends an epoch just before a window does."""
    keys = make_keys(7)
    rules = BlockRules.founding(make_genesis(keys))
    nearly = Attendance(since=0, minutes=MINUTES - 1, counted_ms=START_MS, seen=(keys[0].address,))
    first = rules.first_parent()
    parent = replace(first, registry=first.registry.with_attendance(nearly))
    motion = Motion(
        action=Suspend(address=keys[6].address),
        proposer=keys[0].address,
        created_ms=START_MS,
        expires_ms=TimeMs(START_MS + 1),
    )
    approval = approve(keys[0], rules.network, motion)
    body = Body(entries=(governance_entry(GovernanceTransaction(motion=motion, approvals=(approval,))),))
    outcome = rules.outcome(parent, body, keys[0].address, TimeMs(START_MS + MINUTE_MS))
    begun = outcome.registry.attendance
    holds(outcome.change is not None, "a suspension ends the epoch")
    holds(not begun.seen and not begun.minutes, f"{begun.minutes} minutes of an earlier epoch count in the next")
