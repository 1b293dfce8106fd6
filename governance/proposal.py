"""What a proposer puts into a block: pending things that are valid on top of the last block, within the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nsllm.consensus.block import MAX_BLOCK_BYTES, Body
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.registry import Admission, RegistryState
from nsllm.errors import NsllmError
from nsllm.governance.block_rules import MAX_BLOCK_MOTIONS, BlockRules, History
from nsllm.governance.errors import MotionError
from nsllm.governance.log_entry import (
    SignedCheckpoint,
    admission_entry,
    checkpoint_entry,
    evidence_entry,
    governance_entry,
)
from nsllm.governance.motion import GovernanceTransaction, apply
from nsllm.governance.observation_pool import Candidate, Hopeless
from nsllm.governance.offences import MAX_BLOCK_EVIDENCE
from nsllm.governance.selection import FRAMING_BYTES, Selection, record_of
from nsllm.ids import Address, Height, TimeMs

BODY_BUDGET_BYTES: Final = MAX_BLOCK_BYTES - 160 * 1024
"""Batches and entries of a proposal; the rest is room for the header and one transaction."""
MAX_ADMISSIONS: Final = 64
MAX_ENTRIES: Final = 256
"""As `Body` bounds them."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a proposer has pending."""

    records: Sequence[Candidate | Hopeless] = ()
    """Most urgent first."""
    admissions: Sequence[Admission] = ()
    motions: Sequence[GovernanceTransaction] = ()
    """Each carried and possible after the last block; ascending by the motion's digest."""
    checkpoints: Sequence[SignedCheckpoint] = ()
    evidence: Sequence[Evidence] = ()


def select(
    draft: Draft, rules: BlockRules, registry: RegistryState, history: History, height: Height, time_ms: TimeMs
) -> Body:
    """The body of a block of `height` and `time_ms`, without transactions.

    Left out is what is not valid (any more): settled or admitted meanwhile, strangers' records, too soon a checkpoint,
    too old evidence.
    """
    convicting = _evidence(draft.evidence, rules, history, height)
    newcomers = [each for each in draft.admissions if history.member(each.member.address) is None]
    admissions = sorted(newcomers[:MAX_ADMISSIONS], key=lambda admission: admission.member.address)
    entries = [admission_entry(admission) for admission in admissions]
    entries += _motions(draft.motions, rules, registry, admissions, height)
    selection = Selection(BODY_BUDGET_BYTES - sum(len(entry) + FRAMING_BYTES for entry in (*entries, *convicting)))
    joining = {admission.member.address for admission in admissions}
    settled = history.settled_among([record_of(each) for each in draft.records])
    for each in draft.records:
        if record_of(each) in settled:
            continue
        generator = each.subject.generator if isinstance(each, Candidate) else None
        if generator is None or generator in joining or history.member(generator) is not None:
            selection.add(each)
    if selection.records or entries or convicting:  # a checkpoint alone makes no entry: a quiet network stays quiet
        budget = selection.budget_bytes
        for signed in sorted(draft.checkpoints, key=lambda signed: signed.checkpoint.peer):
            entry = checkpoint_entry(signed)
            budget -= len(entry) + FRAMING_BYTES
            if budget < 0 or len(entries) + len(convicting) == MAX_ENTRIES:
                break
            if _fits(signed, rules, history, time_ms):
                entries.append(entry)
    return selection.body((*entries, *convicting))


def _evidence(evidence: Sequence[Evidence], rules: BlockRules, history: History, height: Height) -> list[bytes]:
    chosen: dict[Address, bytes] = {}
    for each in evidence:
        try:
            offender = rules.check_evidence(each, history, height).validator
        except NsllmError:
            continue
        if len(chosen) < MAX_BLOCK_EVIDENCE:
            chosen.setdefault(offender, evidence_entry(each))
    return [chosen[offender] for offender in sorted(chosen)]


def _motions(
    motions: Sequence[GovernanceTransaction],
    rules: BlockRules,
    registry: RegistryState,
    admissions: Sequence[Admission],
    height: Height,
) -> list[bytes]:
    """Entries of those motions that can be done one after the other."""
    policy, entries = rules.policy, list[bytes]()
    for admission in admissions:
        registry = registry.with_member(admission.member)
    for transaction in motions[:MAX_BLOCK_MOTIONS]:
        try:
            registry, policy = apply(transaction.motion.action, registry, policy, height)
        except MotionError:
            continue
        entries.append(governance_entry(transaction))
    return entries


def _fits(signed: SignedCheckpoint, rules: BlockRules, history: History, time_ms: TimeMs) -> bool:
    if history.member(signed.checkpoint.peer) is None:
        return False
    try:
        rules.check_checkpoint(signed, history, time_ms)
    except NsllmError:
        return False
    return True
