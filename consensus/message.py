"""What travels between validators: one tagged union, bounded before it is parsed.

Direct streams have no gossip's promise that what one honest validator got, all get. So a validator relays the proof of
every step it took on others' word: the polka it locked on, the precommits with which it left a round, the certificate
of a height that is over. What is missing is asked for by `Request`. Evidence travels the same way: who holds one half
only cannot know.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.block import MAX_BLOCK_BYTES
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.evidence import Evidence, SignedProposal
from nsllm.consensus.vote import MAX_VOTES, Proposal, Vote
from nsllm.ids import DigestField, HeightField, RoundField, TimeMsField

MAX_MESSAGE_BYTES: Final = MAX_BLOCK_BYTES + 128 * 1024
"""A block, and as many votes as a set has validators (about 300 bytes each), with room to spare."""


class PolkaCertificate(Value, frozen=True, kw_only=True, tag_field="type", tag="polka"):
    """A quorum of prevotes for one value in one round."""

    votes: Annotated[tuple[Vote, ...], Meta(min_length=1, max_length=MAX_VOTES)]


class RoundCertificate(Value, frozen=True, kw_only=True, tag_field="type", tag="round"):
    """A quorum of precommits of one round, whatever their values: the round may be left."""

    votes: Annotated[tuple[Vote, ...], Meta(min_length=1, max_length=MAX_VOTES)]


class HeightCertificate(Value, frozen=True, kw_only=True, tag_field="type", tag="height"):
    """The certificate of a decided height, for a validator that is still at it or below: it should catch up."""

    certificate: Certificate


class Request(Value, frozen=True, kw_only=True, tag_field="type", tag="request"):
    """Where the sender stands and what it lacks. Unsigned: it asks, it proves nothing."""

    height: HeightField
    round: RoundField
    value: DigestField | None = None
    """A block that the sender has a quorum for but has not seen."""
    asked_ms: TimeMsField | None = None
    """When the sender started: it asks for `Recalled` before it signs anything."""


class Recalled(Value, frozen=True, kw_only=True, tag_field="type", tag="recalled"):
    """Where the sender stands, and what it has heard last over the asker's signature."""

    asked_ms: TimeMsField
    """Of the question."""
    height: HeightField
    """The height that the sender is deciding."""
    vote: Vote | None
    proposal: SignedProposal | None


Body = Proposal | Vote | PolkaCertificate | RoundCertificate | HeightCertificate | Request


class Message(Value, frozen=True, kw_only=True):
    """Envelope of the union."""

    body: Body | Evidence | Recalled


def encode_message(body: Body | Evidence | Recalled) -> bytes:
    """Canonical bytes of a message."""
    return canonical.encode(Message(body=body))


def decode_message(data: bytes) -> Body | Evidence | Recalled:
    """The message that `data` spells.

    Raises:
        EncodingError: longer than `MAX_MESSAGE_BYTES`, malformed, out of bounds, or not the canonical spelling.
    """
    return canonical.decode(data, Message, limit_bytes=MAX_MESSAGE_BYTES).body
