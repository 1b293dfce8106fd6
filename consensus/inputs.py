"""What can happen to the core. Canonical values, because the write-ahead log stores each one that changed the state.

Whoever feeds them in has checked signatures, membership and height, and asked the application about a block.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.block import Block
from nsllm.consensus.message import MAX_MESSAGE_BYTES
from nsllm.consensus.vote import MAX_VOTES, Proposal, Vote
from nsllm.ids import RoundField

MAX_INPUT_BYTES: Final = MAX_MESSAGE_BYTES + 1024

TimerStep = Literal["propose", "prevote", "precommit"]


class Start(Value, frozen=True, kw_only=True, tag_field="type", tag="start"):
    """A block is wanted at this height (the paper's line 10, delayed: there are no empty blocks)."""


class ProposalReceived(Value, frozen=True, kw_only=True, tag_field="type", tag="proposal"):
    """A proposal signed by its round's proposer (also our own), and the application's verdict: the paper's valid(v)."""

    proposal: Proposal
    valid: bool


class VoteReceived(Value, frozen=True, kw_only=True, tag_field="type", tag="vote"):
    """A vote signed by a validator of the set (also our own)."""

    vote: Vote


class CertificateReceived(Value, frozen=True, kw_only=True, tag_field="type", tag="certificate"):
    """Votes that belong together: one kind, one round, one value. A quorum counts as a whole, see `Tally.add`."""

    votes: Annotated[tuple[Vote, ...], Meta(min_length=1, max_length=MAX_VOTES)]


class ValueBuilt(Value, frozen=True, kw_only=True, tag_field="type", tag="built"):
    """The application's answer to `BuildValue`."""

    round: RoundField
    block: Block


class TimedOut(Value, frozen=True, kw_only=True, tag_field="type", tag="timeout"):
    """A timer that `Schedule` armed has run out."""

    step: TimerStep
    round: RoundField


Input = Start | ProposalReceived | VoteReceived | CertificateReceived | ValueBuilt | TimedOut


class _Entry(Value, frozen=True, kw_only=True):
    input: Input


def encode_input(event: Input) -> bytes:
    """Canonical bytes of an input."""
    return canonical.encode(_Entry(input=event))


def decode_input(data: bytes) -> Input:
    """The input that `data` spells.

    Raises:
        EncodingError: not an input.
    """
    return canonical.decode(data, _Entry, limit_bytes=MAX_INPUT_BYTES).input
