"""Evidence: two signed messages of one validator that no honest validator signs both. Checked purely, by anybody.

* `DoubleVote`, `DoubleProposal`: equivocation, two different messages of one slot (height, round, kind).
* `BatchConflict`: equivocation about observations, two batches of one number, two rows of one record, or a row and an
  abstention (`nsllm.consensus.batch_conflict`). It names an epoch and no height: batches have none.
* `Amnesia`: a precommit of round r, and a prevote of a later round r' whose stated lock contradicts it. Whoever
  precommits a value is locked on it from then on (the paper's lines 38-40), and a lock is only ever replaced by one of
  a later round. So in r' an honest validator states a lock of r on that very value, or of a round after r; and if it
  precommitted nil in r, never a lock of r.

A pair stands in canonical order, so it is the same bytes whoever found it. Signatures are bound to network, epoch,
height, round and kind; what a proposal is signed over is small, so its evidence carries no block.

What two messages cannot prove: that the polka of a stated valid round, or of a stated later lock, never was. A
coalition of more than f that decides twice is then known to be within the signers of the later polka; see ADR 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, assert_never

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.batch import SignedCommit
from nsllm.consensus.batch_conflict import BatchConflict
from nsllm.consensus.errors import EvidenceError
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, ProposalBody, Vote, check_signature
from nsllm.ids import (
    Address,
    AddressField,
    Digest,
    DigestField,
    Epoch,
    EpochField,
    Height,
    HeightField,
    NetworkId,
    Round,
    RoundField,
    SignatureField,
    hex0x,
)

MAX_VOTE_EVIDENCE_BYTES: Final = 1024
"""Canonical bytes of the largest evidence about votes and proposals, two prevotes with locks, and room to spare."""
MAX_EVIDENCE_BYTES: Final = 24 * 1024
"""Canonical bytes of the largest evidence, two batches of 64 abstentions with their reasons, and room to spare."""

OffenceKind = Literal["double_vote", "double_proposal", "double_batch", "amnesia"]


class SignedProposal(Value, frozen=True, kw_only=True):
    """A proposal as it was signed, without its block and its polka."""

    epoch: EpochField
    height: HeightField
    round: RoundField
    value: DigestField
    valid_round: RoundField | None
    proposer: AddressField
    signature: SignatureField

    def digest(self, network: NetworkId) -> Digest:
        """What the proposer signed."""
        return ProposalBody(
            epoch=self.epoch,
            height=self.height,
            round=self.round,
            value=self.value,
            valid_round=self.valid_round,
            proposer=self.proposer,
        ).digest(network)


class DoubleVote(Value, frozen=True, kw_only=True, tag_field="type", tag="double_vote"):
    """Two different votes of one slot, in ascending order of their canonical bytes."""

    first: Vote
    second: Vote


class DoubleProposal(Value, frozen=True, kw_only=True, tag_field="type", tag="double_proposal"):
    """Two different proposals of one round, in ascending order of their canonical bytes."""

    first: SignedProposal
    second: SignedProposal


class Amnesia(Value, frozen=True, kw_only=True, tag_field="type", tag="amnesia"):
    """A precommit, and a prevote of a later round that states a lock which the precommit contradicts."""

    precommit: Vote
    prevote: Vote


Evidence = DoubleVote | DoubleProposal | BatchConflict | Amnesia


@dataclass(frozen=True, slots=True)
class Offence:
    """What evidence says: who did what, where."""

    validator: Address
    epoch: Epoch
    height: Height | None
    """None of batches, which are of an epoch."""
    round: Round | None
    """Of amnesia, the prevote's; None of batches."""
    kind: OffenceKind


def double_vote(one: Vote, other: Vote) -> DoubleVote:
    """Evidence of two votes, in order."""
    first, second = sorted((one, other), key=canonical.encode)
    return DoubleVote(first=first, second=second)


def double_proposal(one: Proposal, other: Proposal) -> DoubleProposal:
    """Evidence of two proposals, in order."""
    first, second = sorted((signed_part(one), signed_part(other)), key=canonical.encode)
    return DoubleProposal(first=first, second=second)


def amnesia(precommit: Vote, prevote: Vote) -> Amnesia:
    """Evidence of a forgotten lock."""
    return Amnesia(precommit=precommit, prevote=prevote)


def contradicts(precommit: Vote, prevote: Vote) -> bool:
    """Whether no honest validator signs this precommit, and then in a later round this prevote.

    Args:
        precommit: of some round.
        prevote: of the same validator, epoch and height, and of a later round.
    """
    lock = prevote.lock
    if lock is not None and lock.round == precommit.round:
        return lock.value != precommit.value
    if precommit.value is None:
        return False
    return lock is None or lock.round < precommit.round


def offence_of(evidence: Evidence) -> Offence:
    """Who did what, where; unchecked."""
    match evidence:
        case DoubleVote(first=first):
            return Offence(first.validator, first.epoch, first.height, first.round, "double_vote")
        case DoubleProposal(first=proposal):
            return Offence(proposal.proposer, proposal.epoch, proposal.height, proposal.round, "double_proposal")
        case BatchConflict(first=SignedCommit(commit=commit)):
            return Offence(commit.validator, commit.epoch, None, None, "double_batch")
        case Amnesia(prevote=prevote):
            return Offence(prevote.validator, prevote.epoch, prevote.height, prevote.round, "amnesia")
        case _:
            assert_never(evidence)


def check_evidence(evidence: Evidence, network: NetworkId, validators: ValidatorSet) -> None:
    """Pass silently if the evidence proves an offence of one of `validators`.

    Args:
        evidence: whoever found it.
        network: salt of every signature.
        validators: the set of the offence's epoch.

    Raises:
        EvidenceError: other epoch's, not a validator's, not one validator's slot, no contradiction, or out of order.
        ObservationError: a batch that is malformed.
        SignatureError: a message that the named validator did not sign.
    """
    offence = offence_of(evidence)
    if offence.epoch != validators.epoch:
        raise EvidenceError(f"evidence of epoch {offence.epoch}, checked against epoch {validators.epoch}")
    if offence.validator not in validators:
        raise EvidenceError(f"{hex0x(offence.validator)} is not a validator of epoch {offence.epoch}")
    match evidence:
        case DoubleVote(first=first, second=second):
            _check_pair(first, second, one=_slot(first) == _slot(second), differ=first.says() != second.says())
            for vote in (first, second):
                check_signature(vote, network)
        case DoubleProposal(first=one, second=other):
            same = (one.epoch, one.height, one.round, one.proposer) == (
                other.epoch,
                other.height,
                other.round,
                other.proposer,
            )
            differ = (one.value, one.valid_round) != (other.value, other.valid_round)
            _check_pair(one, other, one=same, differ=differ)
            for proposal in (one, other):
                crypto.verify(proposal.digest(network), proposal.signature, proposal.proposer)
        case BatchConflict():
            evidence.check(network)
        case Amnesia(precommit=precommit, prevote=prevote):
            _check_amnesia(precommit, prevote)
            for vote in (precommit, prevote):
                check_signature(vote, network)
        case _:
            assert_never(evidence)


def _check_pair(first: Value, second: Value, *, one: bool, differ: bool) -> None:
    if not one:
        raise EvidenceError("the two messages are not of one validator, height, round and kind")
    if not differ:
        raise EvidenceError("the two messages say the same")
    if canonical.encode(first) > canonical.encode(second):
        raise EvidenceError("the two messages are not in canonical order")


def _check_amnesia(precommit: Vote, prevote: Vote) -> None:
    if (precommit.kind, prevote.kind) != ("precommit", "prevote"):
        raise EvidenceError(f"amnesia of a {precommit.kind} and a {prevote.kind}")
    same = (precommit.epoch, precommit.height, precommit.validator) == (
        prevote.epoch,
        prevote.height,
        prevote.validator,
    )
    if not same or precommit.round >= prevote.round:
        raise EvidenceError("the prevote is not of the same validator, height and a later round")
    if not contradicts(precommit, prevote):
        raise EvidenceError("the lock that the prevote states agrees with the precommit")


def _slot(vote: Vote) -> tuple[object, ...]:
    return (vote.validator, vote.epoch, vote.height, vote.round, vote.kind)


def signed_part(proposal: Proposal) -> SignedProposal:
    """What of a proposal its signature is over, and the signature."""
    return SignedProposal(
        epoch=proposal.epoch,
        height=proposal.height,
        round=proposal.round,
        value=proposal.value,
        valid_round=proposal.valid_round,
        proposer=proposal.proposer,
        signature=proposal.signature,
    )
