"""What a validator holds against a first proposal, judged by its own pool: observations left out, or copied ones.

Such a judgement is local: another validator may have received things in another order. So it counts in round 0 only; in
later rounds the same block is accepted, and a height ends whatever the links do (docs/scores.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nsllm.consensus.block import MAX_BLOCK_RECORDS, Body
from nsllm.governance.observation_pool import ObservationPool
from nsllm.governance.record_case import RecordCase
from nsllm.ids import Address, Digest, hex0x, short

LEFT_OUT_AFTER_S: Final = 1.0
"""A record that was due here this long before a block was built was due at its proposer too."""


def objection(
    pool: ObservationPool, body: Body, *, due_since: Iterable[tuple[Digest, float]], roomy: bool, built_s: float
) -> str | None:
    """Why an honest proposer of round 0 would not have built `body`; None if it might have.

    Args:
        pool: what this validator has received.
        body: of a block that is valid otherwise.
        due_since: (record, when) of the records that this validator would have settled and `body` does not, oldest
            first; looked at only where there is room for more.
        roomy: whether more would have fitted into the block.
        built_s: when the block was built, as far as its header can be believed.
    """
    named: dict[Address, set[Digest]] = {}
    for excerpt in body.batches:
        commit = excerpt.signed.commit
        if pool.is_banned(excerpt.signed):
            return f"takes in batch {commit.number} of {hex0x(commit.validator)}, who equivocated"
        named.setdefault(commit.validator, set()).update(commit.record_digests)
    for record in body.records:
        case = pool.case(record)
        included = {validator for validator, records in named.items() if record in records}
        reason = _about(record, case, included, built_s) if case is not None else None
        if reason is not None:
            return reason
    roomy = roomy and len(body.records) + len(body.unscored_records) < MAX_BLOCK_RECORDS
    return _left_out(due_since, built_s) if roomy else None


def _about(record: Digest, case: RecordCase, included: set[Address], built_s: float) -> str | None:
    if not case.late and included <= case.committed.keys() and case.opened.keys() <= included:
        return None
    for validator in sorted(included):
        if case.copied(validator, built_s):
            return f"takes in a row of {hex0x(validator)} about {short(record)}, committed after others had opened"
    for validator in sorted(case.opened.keys() - included):
        if case.timely(validator):
            return f"leaves out what {hex0x(validator)} observed of {short(record)}"
    return None


def _left_out(due_since: Iterable[tuple[Digest, float]], built_s: float) -> str | None:
    for record, since_s in due_since:
        if since_s + LEFT_OUT_AFTER_S <= built_s:
            return f"leaves out record {short(record)}, which was due for {built_s - since_s:.1f} s"
    return None
