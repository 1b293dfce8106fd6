"""Votes and proposals: the signed messages of the algorithm.

A precommit for a value is signed as EIP-712 over the header (`nsllm.consensus.header.precommit_digest`), so that a
contract can count it; everything else is signed over the canonical digest of a body that binds every field.

A prevote states two things beside its value: the lock that its validator holds (lockedRound and lockedValue of the
paper) and the valid round of the proposal that it is for. So whoever breaks a lock signs either a lock that its own
precommit contradicts (`nsllm.consensus.evidence`) or a prevote that `check_lock` refuses.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Final, Literal

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.block import Block
from nsllm.consensus.header import precommit_digest
from nsllm.ids import (
    AddressField,
    Digest,
    DigestField,
    EpochField,
    HeightField,
    NetworkId,
    Round,
    RoundField,
    Signature,
    SignatureField,
)

VoteKind = Literal["prevote", "precommit"]

MAX_VOTES: Final = 256
"""Votes in one certificate: as many as validators in a set."""


class Choice(Value, frozen=True, kw_only=True):
    """A value and the round in which a polka was seen for it."""

    round: RoundField
    value: DigestField


class VoteBody(Value, frozen=True, kw_only=True):
    """What a vote says; a prevote, or a precommit for nil, is signed over its canonical digest."""

    kind: VoteKind
    epoch: EpochField
    height: HeightField
    round: RoundField
    value: DigestField | None
    validator: AddressField
    lock: Choice | None
    valid_round: RoundField | None

    def digest(self, network: NetworkId) -> Digest:
        """What `validator` signs to cast the vote."""
        if self.kind == "precommit" and self.value is not None:
            return precommit_digest(network, self.epoch, self.height, self.round, self.value)
        return canonical.digest("vote", network, self)

    def signed(self, signature: Signature) -> Vote:
        """The vote with its validator's signature."""
        return Vote(
            kind=self.kind,
            epoch=self.epoch,
            height=self.height,
            round=self.round,
            value=self.value,
            validator=self.validator,
            signature=signature,
            lock=self.lock,
            valid_round=self.valid_round,
        )


class Vote(Value, frozen=True, kw_only=True, tag_field="type", tag="vote"):
    """⟨PREVOTE, h, r, id(v)⟩ or ⟨PRECOMMIT, h, r, id(v)⟩ of one validator."""

    kind: VoteKind
    epoch: EpochField
    height: HeightField
    round: RoundField
    value: DigestField | None
    """Id of the header voted for; None is the paper's nil."""
    validator: AddressField
    signature: SignatureField
    lock: Choice | None = None
    """Of a prevote: what its validator is locked on, of an earlier round; None: on nothing."""
    valid_round: RoundField | None = None
    """Of a prevote for a value: valid round of the proposal that it answers; None is the paper's -1."""

    def __post_init__(self) -> None:
        if self.lock is None and self.valid_round is None:
            return
        if self.kind == "precommit":
            raise ValueError("a precommit states no lock and no valid round")
        if self.lock is not None and self.lock.round >= self.round:
            raise ValueError("a prevote states a lock of an earlier round")
        if self.valid_round is not None and (self.value is None or self.valid_round >= self.round):
            raise ValueError("a prevote for a value states a valid round below its own; one for nil states none")

    def digest(self, network: NetworkId) -> Digest:
        """What the validator signed."""
        return VoteBody(
            kind=self.kind,
            epoch=self.epoch,
            height=self.height,
            round=self.round,
            value=self.value,
            validator=self.validator,
            lock=self.lock,
            valid_round=self.valid_round,
        ).digest(network)

    def says(self) -> tuple[Digest | None, Choice | None, Round | None]:
        """What it says in its slot: two votes of one validator and slot are one vote if they say the same."""
        return (self.value, self.lock, self.valid_round)


Votes = Annotated[tuple[Vote, ...], Meta(max_length=MAX_VOTES)]


class ProposalBody(Value, frozen=True, kw_only=True):
    """What a proposal is signed over; the value's id commits to the header and so to the body."""

    epoch: EpochField
    height: HeightField
    round: RoundField
    value: DigestField
    valid_round: RoundField | None
    proposer: AddressField

    def digest(self, network: NetworkId) -> Digest:
        """What `proposer` signs to propose."""
        return canonical.digest("proposal", network, self)

    def signed(self, block: Block, polka: tuple[Vote, ...], signature: Signature) -> Proposal:
        """The proposal of `block`, whose header has the id `value`, with its proposer's signature."""
        return Proposal(
            block=block,
            epoch=self.epoch,
            height=self.height,
            round=self.round,
            valid_round=self.valid_round,
            polka=polka,
            proposer=self.proposer,
            signature=signature,
        )


class Proposal(Value, frozen=True, kw_only=True, dict=True, gc=True, tag_field="type", tag="proposal"):
    """⟨PROPOSAL, h, r, v, vr⟩ of the round's proposer."""

    block: Block
    epoch: EpochField
    height: HeightField
    round: RoundField
    valid_round: RoundField | None
    """None is the paper's -1."""
    polka: Votes = ()
    """Prevotes that prove `valid_round`; may be empty where the receivers have them already. Not signed over: each
    carries its own signature."""
    proposer: AddressField
    signature: SignatureField

    @cached_property
    def value(self) -> Digest:
        """The paper's id(v): id of the block's header."""
        return self.block.header.id()

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

    def says(self) -> tuple[Digest, Round | None]:
        """What it says in its slot, beside the polka, which is not its own word."""
        return (self.value, self.valid_round)


def check_signature(message: Vote | Proposal, network: NetworkId) -> None:
    """Pass silently if the named validator signed it (the votes of a polka are checked by whoever counts them).

    Raises:
        SignatureError: not that validator's signature.
    """
    signer = message.validator if isinstance(message, Vote) else message.proposer
    crypto.verify(message.digest(network), message.signature, signer)


def keeps_lock(value: Digest | None, lock: Choice | None, valid_round: Round | None) -> bool:
    """Whether lines 23 and 29 of the paper allow a prevote for `value` under `lock`.

    It is for nil, or for the locked value, or for a value with a polka of the lock's round or a later one.
    """
    if lock is None or value is None or value == lock.value:
        return True
    return valid_round is not None and lock.round <= valid_round
