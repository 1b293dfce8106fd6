"""What validators say to each other about observations: one tagged union, bounded before it is parsed."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.batch import BatchReveal, SignedCommit

MAX_OBSERVATION_BYTES: Final = 16 * 1024
"""The largest commit, of 64 abstentions with their reasons, is about 10 kB."""
MAX_REVEALS: Final = 32
"""Batches of which one message opens rows."""


class Commit(Value, frozen=True, kw_only=True, tag_field="type", tag="commit"):
    """A batch, hidden."""

    signed: SignedCommit


class Reveal(Value, frozen=True, kw_only=True, tag_field="type", tag="reveal"):
    """Rows of one validator's batches, opened together."""

    reveals: Annotated[tuple[BatchReveal, ...], Meta(min_length=1, max_length=MAX_REVEALS)]


ObservationBody = Commit | Reveal


class ObservationMessage(Value, frozen=True, kw_only=True):
    """Envelope of the union."""

    body: ObservationBody


def encode_observation(body: ObservationBody) -> bytes:
    """Canonical bytes of a message."""
    return canonical.encode(ObservationMessage(body=body))


def decode_observation(data: bytes) -> ObservationBody:
    """The message that `data` spells.

    Raises:
        EncodingError: longer than `MAX_OBSERVATION_BYTES`, malformed, out of bounds, or not the canonical spelling.
    """
    return canonical.decode(data, ObservationMessage, limit_bytes=MAX_OBSERVATION_BYTES).body
