"""Passages: how chunks that an answer cites stand before its question, the same bytes for generator and validators.

They are the end of the conversation's system message, so that the last user turn stays the question alone: it is what
is embedded, judged and compared. What a record cites must stand there, and what stands there comes from signed chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from nsllm.errors import EncodingError
from nsllm.ids import NetworkId
from nsllm.record import MAX_TEXT_CHARS, Message, Record, SignedChunk

HEAD: Final = "Use these passages where they help to answer the question."


def texts(evidence: Sequence[SignedChunk]) -> tuple[str, ...]:
    """What the chunks say."""
    return tuple(signed.chunk.text for signed in evidence)


def framed(evidence: Sequence[SignedChunk]) -> str:
    """Chunks as a model reads them: numbered from 1, each with the name of its document."""
    cited = (f"[{number}] {one.chunk.source}\n{one.chunk.text}" for number, one in enumerate(evidence, 1))
    return "\n\n".join((HEAD, *cited))


def with_passages(messages: Sequence[Message], evidence: Sequence[SignedChunk]) -> tuple[Message, ...]:
    """The conversation with the chunks at the end of its system message, which is made if there is none.

    Raises:
        ValueError: the system message would be longer than a record takes.
    """
    if not evidence:
        return tuple(messages)
    first, *rest = messages
    if first.role != "system":
        first, rest = Message(role="system", content=""), [*messages]
    content = "\n\n".join(filter(None, (first.content, framed(evidence))))
    if len(content) > MAX_TEXT_CHARS:
        raise ValueError(f"a system message of {len(content)} characters, the limit is {MAX_TEXT_CHARS}")
    return (msgspec.structs.replace(first, content=content), *rest)


def check_evidence(record: Record, network: NetworkId) -> None:
    """Pass silently if every chunk that the record cites is its member's and was read where the record says.

    Raises:
        EncodingError: a chunk of another network, one cited twice, or chunks that are not what the model was shown.
        SignatureError: a chunk that its member did not sign.
    """
    if not record.evidence:
        return
    for signed in record.evidence:
        signed.check(network)
    if len({signed.chunk.digest() for signed in record.evidence}) < len(record.evidence):
        raise EncodingError("the record cites a chunk twice")
    first, shown = record.request.messages[0], framed(record.evidence)
    if first.role != "system" or (first.content != shown and not first.content.endswith(f"\n\n{shown}")):
        raise EncodingError(f"the {len(record.evidence)} chunks that the record cites are not what its model was shown")
