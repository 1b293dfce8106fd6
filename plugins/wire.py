"""Frames between the peer and a plugin worker: a length of four bytes, big-endian, then canonical MessagePack."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.validation import Measure
from nsllm.governance.validator import TextItem
from nsllm.ids import NameField, PpmField
from nsllm.plugins.loaded import MAX_RESULTS, Identity

HEADER_BYTES: Final = 4
MAX_REQUEST_BYTES: Final = 1024 * 1024
"""Question and answer of 100,000 characters each, four bytes a character, fit."""
MAX_REPLY_BYTES: Final = 64 * 1024
MAX_PLUGINS_A_WORKER: Final = 8


class Call(Value, frozen=True, kw_only=True):
    """Peer to worker: call one hook; exactly one of the items is there."""

    text: TextItem | None = None
    """For `nsllm_validate`."""
    answer: AnswerItem | None = None
    """For `nsllm_score`."""


class Dimension(Value, frozen=True, kw_only=True):
    """One scored dimension, under its full name."""

    name: NameField
    ppm: PpmField


class Reply(Value, frozen=True, kw_only=True):
    """Worker to peer: the answer to the call before, or to having been started."""

    kind: Literal["hello", "measures", "scores", "failed"]
    plugins: Annotated[tuple[Identity, ...], Meta(max_length=MAX_PLUGINS_A_WORKER)] = ()
    measures: Annotated[tuple[Measure, ...], Meta(max_length=MAX_RESULTS * MAX_PLUGINS_A_WORKER)] = ()
    scores: Annotated[tuple[Dimension, ...], Meta(max_length=MAX_RESULTS * MAX_PLUGINS_A_WORKER)] = ()
    reason: Annotated[str, Meta(max_length=300)] = ""
    """Of `failed`: type and place of the error, never its message, which may quote the text."""


def frame(value: Value) -> bytes:
    """Length and canonical bytes of a message."""
    body = canonical.encode(value)
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def body_length(header: bytes, *, limit_bytes: int) -> int:
    """Length that a frame's header claims.

    Raises:
        ValueError: cut short, or more than `limit_bytes`.
    """
    length = int.from_bytes(header, "big")
    if len(header) != HEADER_BYTES or length > limit_bytes:
        raise ValueError(
            f"frame header {header[:HEADER_BYTES].hex()} claims {length} bytes, the limit is {limit_bytes}"
        )
    return length
