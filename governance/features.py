"""What the models say about an answer, measured once and then judged by every layer and scorer.

Features are bounded integers, rounded here once, so that a plugin worker, the peer and a simulation judge the very same
numbers. Plugin workers hold no models: this is all they get beside the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.embedding import numbers_of, quantize_numbers
from nsllm.governance.ports import HEAD_TOKENS, JUDGED_TOKENS, JudgeModels, Likelihood
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


class Answer(NamedTuple):
    """An answer that is to be measured."""

    messages: Sequence[Message]
    """The conversation that it is the assistant's reply to."""
    text: str
    evidence: Sequence[str] = ()
    """Texts that it cites."""
    given: Likelihood | None = None
    """Its likelihood after the conversation, where it is known already."""
    free: Likelihood | None = None
    """Its head's after `UNCONDITIONED`, where that is known."""

    def questions(self) -> list[str]:
        """What it may be relevant to: the last user turn, and in a longer conversation the user turns together."""
        turns = [message.content for message in self.messages if message.role == "user"] or [""]
        return turns if len(turns) == 1 else [turns[-1], "\n".join(turns)[-HISTORY_CHARS:]]


async def measure_answer(models: JudgeModels, answer: Answer) -> AnswerFeatures:
    """Features of one answer, see `measure_answers`."""
    return (await measure_answers(models, [answer]))[0]


async def measure_answers(models: JudgeModels, answers: Sequence[Answer]) -> list[AnswerFeatures]:
    """Features of answers: one call for all embeddings, at most two for likelihoods.

    Relevance is the higher cosine of the answer to the last user turn and, in a longer conversation, to all user turns
    together: "and in winter?" alone says little.
    """
    spoken = [answer for answer in answers if answer.text.strip()]
    texts: list[str] = []
    parts: list[tuple[int, Sequence[str], Sequence[str]]] = []
    for answer in spoken:
        questions = answer.questions()
        said, pieces = (claims(answer.text), evidence_claims(answer.evidence)) if answer.evidence else ((), ())
        texts += (answer.text, *questions, *said, *pieces)
        parts.append((len(questions), said, pieces))
    vectors = iter(await models.embed(texts) if texts else ())
    given = iter(await _likelihoods(models, [(tuple(a.messages), a.text) for a in spoken if a.given is None]))
    free = iter(await _likelihoods(models, [(UNCONDITIONED, a.text) for a in spoken if a.free is None], HEAD_TOKENS))
    measured = iter(
        [
            _features(
                next(given) if answer.given is None else answer.given,
                next(free) if answer.free is None else answer.free,
                list(islice(vectors, 1 + questions)),
                list(islice(vectors, len(said))),
                list(islice(vectors, len(pieces))),
            )
            for answer, (questions, said, pieces) in zip(spoken, parts, strict=True)
        ]
    )
    return [next(measured) if answer.text.strip() else EMPTY_ANSWER for answer in answers]


async def _likelihoods(
    models: JudgeModels, items: Sequence[tuple[tuple[Message, ...], str]], most_tokens: int = JUDGED_TOKENS
) -> list[Likelihood]:
    return await models.likelihoods(items, most_tokens=most_tokens) if items else []


def _features(
    given: Likelihood,
    free: Likelihood,
    vectors: Sequence[Sequence[float]],
    said: Sequence[Sequence[float]],
    pieces: Sequence[Sequence[float]],
) -> AnswerFeatures:
    """Of likelihoods and vectors: the answer's, then its questions'; its sentences', its evidence's."""
    own, *asked = map(numbers_of, vectors)
    head, alone = _within(given.head_logprob, LOGPROB_FLOOR, 0.0), _within(free.head_logprob, LOGPROB_FLOOR, 0.0)
    return AnswerFeatures(
        tokens=given.tokens,
        logprob_micro=round(_within(given.mean_logprob, LOGPROB_FLOOR, 0.0) * MICRO),
        gain_micro=round((head - alone) * MICRO),
        relevance_cosine_ppm=round(max([_within(float(own.dot(one)), -1.0, 1.0) for one in asked]) * PPM_ONE),
        support_cosine_ppm=support_ppm(said, pieces) if said else None,
        embedding=quantize_numbers(own),
    )


def _within(value: float, low: float, high: float) -> float:
    if low <= value <= high:
        return value
    return high if value > high else low  # where it is no number, too
