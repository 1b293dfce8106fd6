"""From a conversation with attachments to what the model is asked: words before the question, or pictures to see."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from nsllm.ids import Digest
from nsllm.node.attachments.attached import PLACE, Attached
from nsllm.node.attachments.port import Describer, How
from nsllm.node.errors import InvalidRequestError
from nsllm.record import MAX_TEXT_CHARS, Message

SEEN_BYTES: Final = 12 << 20
"""All pictures of a request that a model sees; the rest of the worker's 16 MiB frames is for text."""


@dataclass(frozen=True, slots=True)
class Note:
    """How one attachment was used: what an answer says of it."""

    digest: Digest
    kind: Literal["image", "table"]
    how: How
    name: str


@dataclass(frozen=True, slots=True)
class Attended:
    """A conversation that is ready for the model."""

    messages: tuple[Message, ...]
    """Each remaining `PLACE` stands for one of `images`, in order."""
    images: tuple[bytes, ...] = ()
    """PNG files, for a model that sees."""
    notes: tuple[Note, ...] = ()
    """One for each attachment, in order."""

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Of the attachments: what the request's key and the record hold of them."""
        return tuple(note.digest for note in self.notes)


async def attend(
    messages: Sequence[Message], attached: Sequence[Attached], describer: Describer, *, sees: bool
) -> Attended:
    """Look at what is attached.

    Tables, and pictures for a model that only reads, become text before the message that they came with: small models
    use a context that stands before the question, and miss one behind it. A model that sees gets the pictures, in
    their places.

    Args:
        messages: with a `PLACE` for each attachment.
        attached: in the order of the places.
        describer: who looks.
        sees: whether the text model takes pictures.

    Raises:
        InvalidRequestError: an attachment that cannot be used; names its field.
        OverloadedError: too many wait.
    """
    places = sum(message.content.count(PLACE) for message in messages)
    if not attached:
        return Attended(tuple(messages))
    if places != len(attached):
        raise InvalidRequestError(f"{len(attached)} attachments for {places} places", param="messages")
    pictures = sum(one.kind == "image" for one in attached)
    budget_bytes = SEEN_BYTES // max(1, pictures)
    left = iter(attached)
    numbers: Counter[str] = Counter()
    images: list[bytes] = []
    notes: list[Note] = []
    ready: list[Message] = []
    for message in messages:
        content, *pieces = message.content.split(PLACE)
        before: list[str] = []
        for one, piece in zip(itertools.islice(left, len(pieces)), pieces, strict=True):
            numbers[one.kind] += 1
            if sees and one.kind == "image":
                images.append(await describer.prepare(one, budget_bytes))
                notes.append(Note(one.digest, one.kind, "native", one.name))
                content += PLACE + piece
            else:
                description = await describer.describe(one)
                notes.append(Note(one.digest, one.kind, description.how, one.name))
                before.append(_framed(numbers[one.kind], one, description.text))
                content += ("\n" if content and piece else "") + piece
        content = "\n\n".join([*before, content] if content else before)
        if len(content) > MAX_TEXT_CHARS:
            raise InvalidRequestError(
                f"with its attachments a message has {len(content)} characters, the limit is {MAX_TEXT_CHARS}",
                param="messages",
            )
        ready.append(msgspec.structs.replace(message, content=content))
    return Attended(tuple(ready), tuple(images), tuple(notes))


def _framed(number: int, one: Attached, text: str) -> str:
    """The description as it stands in the message."""
    what = "Image" if one.kind == "image" else "Data"
    name = f", {one.name}" if one.name else ""
    return f"[{what} {number}{name}: {text}]"
