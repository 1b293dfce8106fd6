"""What peer and attachment worker say to each other: one question at a time, in the model worker's frames."""

from __future__ import annotations

from typing import Literal

import msgspec

from nsllm.node.attachments.attached import Format
from nsllm.node.engine.protocol import FrameReader


class Describe(msgspec.Struct, frozen=True, tag=True):
    """Put an attachment into words. Answered by `Described`, `Refused` or `Broken`."""

    format: Format
    data: bytes


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Make a picture ready for a model that sees. Answered by `Prepared`, `Refused` or `Broken`."""

    format: Format
    data: bytes
    max_bytes: int


class Described(msgspec.Struct, frozen=True, tag=True):
    """An attachment in words."""

    text: str
    how: Literal["ocr+labels", "table", "json"]


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """A picture as a PNG file."""

    png: bytes


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The attachment cannot be used; the message says why and quotes none of it."""

    message: str


class Broken(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot do this: a model or a library is missing, or a bug; says which, without content."""

    message: str


ToWorker = Describe | Prepare
FromWorker = Described | Prepared | Refused | Broken


def worker_reader() -> FrameReader[ToWorker]:
    """For the worker's end."""
    return FrameReader(msgspec.msgpack.Decoder(ToWorker))


def peer_reader() -> FrameReader[FromWorker]:
    """For the peer's end."""
    return FrameReader(msgspec.msgpack.Decoder(FromWorker))
