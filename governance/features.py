"""What the models say about an answer, measured once and then judged by every layer and scorer.

Features are bounded integers, rounded here once, so that a plugin worker, the peer and a simulation judge the very same
numbers. Plugin workers hold no models: this is all they get beside the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.embedding import numbers_of, quantize_numbers
from nsllm.governance.ports import HEAD_TOKENS, JudgeModels, Likelihood
from nsllm.governance.support import claims, evidence_claims, support_ppm
from nsllm.ids import PPM_ONE
from nsllm.record import EMBEDDING_DIMENSIONS, Message

MICRO: Final = 1_000_000
LOGPROB_FLOOR: Final = -30.0
"""Nats a token; a uniform guess over 49,152 tokens is -10.8, so nothing real lies below."""
UNCONDITIONED: Final = (Message(role="user", content="Say something."),)
"""The prompt that asks for nothing in particular: what an answer gains over it is what the question explains."""
HISTORY_CHARS: Final = 1_000
"""Of earlier user turns that relevance may lean on; the encoder reads 256 tokens."""

CosineField = Annotated[int, Meta(ge=-PPM_ONE, le=PPM_ONE)]
LogprobField = Annotated[int, Meta(ge=-30 * MICRO, le=0)]
GainField = Annotated[int, Meta(ge=-30 * MICRO, le=30 * MICRO)]
EmbeddingField = Annotated[bytes, Meta(min_length=EMBEDDING_DIMENSIONS, max_length=EMBEDDING_DIMENSIONS)]


class AnswerFeatures(Value, frozen=True, kw_only=True):
    """An answer, as the rubric's scorer model and encoder see it."""

    tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    """Tokens of the answer that the scorer model read; 0 if the answer is empty."""
    logprob_micro: LogprobField
    """Mean log-probability a token given the conversation, in millionths of a nat."""
    gain_micro: GainField
    """How much likelier a token of the answer's beginning is given the conversation than after `UNCONDITIONED`, in
    millionths of a nat."""
    relevance_cosine_ppm: CosineField
    """Cosine of question and answer."""
    support_cosine_ppm: CosineField | None = None
    """Mean over the answer's sentences of the highest cosine to a sentence of the evidence; None without evidence."""
    embedding: EmbeddingField
    """The answer's embedding: 384 signed bytes, unit vector times 127."""


EMPTY_ANSWER: Final = AnswerFeatures(
    tokens=0,
    logprob_micro=round(LOGPROB_FLOOR * MICRO),
    gain_micro=0,
    relevance_cosine_ppm=0,
    embedding=bytes(EMBEDDING_DIMENSIONS),
)
"""Nothing was said: no model is asked, every dimension of quality is at its floor."""


async def measure_answer(
    models: JudgeModels,
    messages: Sequence[Message],
    answer: str,
    evidence: Sequence[str] = (),
    *,
    given: Likelihood | None = None,
    free: Likelihood | None = None,
) -> AnswerFeatures:
    """Features of `answer` as the assistant's reply to `messages`: one call for embeddings, two for likelihoods.

    Args:
        models: the rubric's.
        messages: the conversation.
        answer: what the assistant said.
        evidence: texts that the answer cites.
        given: the answer's likelihood after the conversation, where it is known already.
        free: its head's after `UNCONDITIONED`, where that is known.

    Relevance is the higher cosine of the answer to the last user turn and, in a longer conversation, to all user turns
    together: "and in winter?" alone says little.
    """
    if not answer.strip():
        return EMPTY_ANSWER
    turns = [message.content for message in messages if message.role == "user"] or [""]
    questions = turns[-1:] + (["\n".join(turns)[-HISTORY_CHARS:]] if len(turns) > 1 else [])
    said, pieces = (claims(answer), evidence_claims(evidence)) if evidence else ((), ())
    vectors = await models.embed([answer, *questions, *said, *pieces])
    if given is None:
        [given] = await models.likelihoods([(tuple(messages), answer)])
    if free is None:
        [free] = await models.likelihoods([(UNCONDITIONED, answer)], most_tokens=HEAD_TOKENS)
    own, rest = numbers_of(vectors[0]), vectors[1 + len(questions) :]
    cosines = [_within(float(own.dot(numbers_of(vector))), -1.0, 1.0) for vector in vectors[1 : 1 + len(questions)]]
    head, alone = _within(given.head_logprob, LOGPROB_FLOOR, 0.0), _within(free.head_logprob, LOGPROB_FLOOR, 0.0)
    return AnswerFeatures(
        tokens=given.tokens,
        logprob_micro=round(_within(given.mean_logprob, LOGPROB_FLOOR, 0.0) * MICRO),
        gain_micro=round((head - alone) * MICRO),
        relevance_cosine_ppm=round(max(cosines) * PPM_ONE),
        support_cosine_ppm=support_ppm(rest[: len(said)], rest[len(said) :]) if said else None,
        embedding=quantize_numbers(own),
    )


def _within(value: float, low: float, high: float) -> float:
    if low <= value <= high:
        return value
    return high if value > high else low  # where it is no number, too
