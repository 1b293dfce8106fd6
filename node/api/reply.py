"""What every reply says beside its text: headers, the `nsllm` object, usage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from nsllm.ids import hex0x
from nsllm.node.attachments.attend import Note
from nsllm.node.chat import ChatFinished, ChatStarted, Citation, Source

ToldUsage = Literal["never", "last", "always"]
"""Whether a stream counts tokens: in a chunk of its own at the end, or in every chunk."""


def reply_headers(started: ChatStarted) -> dict[str, str]:
    """Headers that are known before the first token; a header without data is left out."""
    source = started.source
    headers = {
        "x-nsllm-completion-id": started.completion_id,
        "x-nsllm-source": source.kind,
        "x-nsllm-generator": source.generator,
        "x-nsllm-visibility": started.visibility,
    }
    if started.group:
        headers["x-nsllm-group"] = started.group
    if source.score_ppm is not None:
        headers["x-nsllm-score"] = score_text(source.score_ppm)
    if source.height is not None:
        headers["x-nsllm-height"] = str(source.height)
    if source.match is not None:
        headers["x-nsllm-match"] = source.match
    if source.similarity_ppm is not None:
        headers["x-nsllm-similarity"] = score_text(source.similarity_ppm)
    if source.error_bound_ppm is not None:
        headers["x-nsllm-error-bound"] = score_text(source.error_bound_ppm)
    if source.age_ms is not None:
        headers["x-nsllm-age-ms"] = str(source.age_ms)
    if source.model_digest is not None:
        headers["x-nsllm-model-digest"] = source.model_digest
    if started.citations:
        headers["x-nsllm-evidence"] = ",".join(hex0x(citation.chunk) for citation in started.citations)
    return headers


def nsllm_object(started: ChatStarted, finished: ChatFinished) -> dict[str, object]:
    """What OpenAI's shape has no place for; `receipt` is None where there will be none."""
    has_receipt = finished.publication in {"pending", "certified"}
    return {
        "completion_id": started.completion_id,
        **_source(started.source),
        "visibility": started.visibility,
        "group": started.group or None,
        "publication": finished.publication,
        "detail": finished.detail,
        "attachments": [_attachment(note) for note in started.attachments],
        "evidence": [_citation(number, citation) for number, citation in enumerate(started.citations, 1)],
        "receipt": f"/v1/receipts/{started.completion_id}" if has_receipt else None,
    }


def _attachment(note: Note) -> dict[str, str]:
    return {"digest": hex0x(note.digest), "kind": note.kind, "how": note.how, "name": note.name}


def _citation(number: int, citation: Citation) -> dict[str, object]:
    return {
        "number": number,
        "source": citation.source,
        "span": [citation.start, citation.end],
        "chunk": hex0x(citation.chunk),
        "document": hex0x(citation.document),
        "member": hex0x(citation.member),
    }


def _source(source: Source) -> dict[str, object]:
    return {
        "source": source.kind,
        "generator": source.generator,
        "score_ppm": source.score_ppm,
        "height": source.height,
        "age_ms": source.age_ms,
        "match": source.match,
        "similarity_ppm": source.similarity_ppm,
        "error_bound_ppm": source.error_bound_ppm,
        "model_digest": source.model_digest,
    }


def usage_so_far(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of an answer and its prompt."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage(prompt_tokens: int, finished: Iterable[ChatFinished]) -> dict[str, int]:
    """Tokens of a whole reply: its prompts', each once, and all of its answers'."""
    return usage_so_far(prompt_tokens, sum(each.completion_tokens for each in finished))


def score_text(score_ppm: int) -> str:
    """A score as a header carries it: 0 to 1, exact.

    >>> score_text(812345)
    '0.812345'
    """
    return f"{score_ppm // 1_000_000}.{score_ppm % 1_000_000:06d}"
