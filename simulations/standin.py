"""A stand-in for the engine: answers without a model, and says so wherever a model is named.

For simulations only: whole networks run on a virtual clock in one process, where no language model could. Answers are a
function of the question and the seed; embeddings are hashed bags of words, so that related texts are near; likelihoods
fall with repetition. Time passes on trio's clock as a model's would.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Final

import trio

from nsllm.governance.ports import JUDGED_TOKENS, Claim, Likelihood, Trace
from nsllm.ids import Digest
from nsllm.node.engine.port import Done, EngineInfo, EngineRequest, ModelInfo, Piece, Readable
from nsllm.node.errors import InvalidRequestError
from nsllm.record import EMBEDDING_DIMENSIONS, Message, Sampling

NAME: Final = "stand-in (no language model)"
TOKEN_S: Final = 0.02
WORDS: Final = (
    "because",
    "the",
    "network",
    "of",
    "peers",
    "shares",
    "each",
    "answer",
    "with",
    "a",
    "certificate",
    "that",
    "anyone",
    "can",
    "verify",
    "offline",
)


class StandInEngine:
    """Implements `nsllm.node.engine.port.Engine` without a model."""

    def __init__(self) -> None:
        self._active = 0

    def info(self) -> EngineInfo:
        """Both models are declared stand-ins."""
        return EngineInfo(
            text=ModelInfo(
                name=NAME,
                digest=stand_in_digest("text"),
                dtype="none",
                context_tokens=8192,
                defaults=Sampling(temperature_micro=200_000, top_p_micro=900_000),
                stand_in=True,
            ),
            encoder=ModelInfo(
                name=f"{NAME}, encoder",
                digest=stand_in_digest("encoder"),
                dtype="none",
                context_tokens=512,
                defaults=Sampling(),
                stand_in=True,
            ),
            state="ready",
            restarts=0,
            active=self._active,
            queued=0,
            tokens_per_second=1 / TOKEN_S,
        )

    @asynccontextmanager
    async def generate(self, request: EngineRequest) -> AsyncGenerator[AsyncIterator[Piece | Done]]:
        """Stream words that depend on the question and the seed."""
        self._active += 1
        try:
            yield self._stream(request.messages, request.sampling)
        finally:
            self._active -= 1

    async def _stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece | Done]:
        words = _words(messages, sampling)
        limit = sampling.max_tokens or len(words)
        for number, word in enumerate(words[:limit]):
            await trio.sleep(TOKEN_S)
            yield Piece((_token(word),), word if number == 0 else f" {word}")
        yield Done(
            finish_reason="stop" if limit >= len(words) else "length",
            prompt_token_ids=tuple(_token(word) for message in messages for word in message.content.split()),
            sampling=Sampling(
                temperature_micro=sampling.temperature_micro or 200_000,
                top_p_micro=sampling.top_p_micro or 900_000,
                seed=sampling.seed or 0,
                max_tokens=limit,
            ),
        )

    async def tokenize(self, request: EngineRequest, *, special: bool) -> tuple[int, ...]:
        """A number for each word."""
        del special
        await trio.lowlevel.checkpoint()
        return tuple(_token(word) for message in request.messages for word in message.content.split())

    async def detokenize(self, token_ids: Sequence[int], model: Digest | None) -> str:
        """Words cannot be told from their numbers. Raises `InvalidRequestError`."""
        del token_ids, model
        raise InvalidRequestError("a stand-in has no vocabulary")

    async def token_strs(self, token_ids: Sequence[int], model: Digest | None) -> tuple[str, ...]:
        """As `detokenize`. Raises `InvalidRequestError`."""
        del token_ids, model
        raise InvalidRequestError("a stand-in has no vocabulary")

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Hashed bags of words, unit length."""
        await trio.sleep(0.001 * len(texts))
        return [_bag(text) for text in texts]

    async def embed_counted(
        self, texts: Sequence[Readable], *, most_tokens: int | None = None
    ) -> tuple[list[tuple[float, ...]], int]:
        """Vectors and number of words. Raises `InvalidRequestError`: of token ids, which stand for none."""
        words = [text.split()[:most_tokens] for text in texts if isinstance(text, str)]
        if len(words) < len(texts):
            raise InvalidRequestError("a stand-in has no vocabulary", param="input")
        return await self.embed([" ".join(row) for row in words]), sum(map(len, words))

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """Falls with repetition, rises with words that the conversation has."""
        del most_tokens
        await trio.sleep(0.01 * len(items))
        return [_likelihood(messages, text) for messages, text in items]

    def judging(self, scorer: Digest) -> StandInEngine | None:
        """Itself, where the rubric names a stand-in."""
        return self if scorer == stand_in_digest("text") else None

    def holds(self, model: Digest) -> bool:
        """Its own answers only."""
        return model == stand_in_digest("text")

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """Answers it once more: other words than its own strain as no token of a model does."""
        del beside  # its likelihoods are asked for by themselves
        await trio.sleep(0.01)
        words = _words(claim.request.messages, claim.sampling)[: claim.sampling.max_tokens]
        spoken = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        if claim.text != "".join(spoken):
            return Trace(0, fault="text")
        wrong = sum(one != _token(word) for one, word in zip(claim.token_ids, words, strict=False))
        wrong += abs(len(claim.token_ids) - len(words))
        return Trace(
            len(words), mean_strain=16.0 * min(1.0, wrong / max(1, len(words))), worst_strain=16.0 * bool(wrong)
        )


@cache
def stand_in_digest(part: str) -> Digest:
    """Digest under which a stand-in's rubric names its parts."""
    return Digest(hashlib.sha256(f"nsllm stand-in {part}".encode()).digest())


def _words(messages: Sequence[Message], sampling: Sampling) -> list[str]:
    """An answer: the question's first words and a tail."""
    question = messages[-1].content
    return [*question.split()[:12], *_tail(question, sampling.seed or 0)]


def _tail(question: str, seed: int) -> list[str]:
    """Sixteen distinct words in an order that the question and the seed choose."""
    ranked = sorted(WORDS, key=lambda word: hashlib.sha256(f"{seed}/{question}/{word}".encode()).digest())
    return list(ranked)


def _token(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:3], "big")


def _bag(text: str) -> tuple[float, ...]:
    vector = [0.0] * EMBEDDING_DIMENSIONS
    for word in text.lower().split():
        digest = hashlib.sha256(word.encode()).digest()
        vector[int.from_bytes(digest[:4], "big") % EMBEDDING_DIMENSIONS] += 1.0 if digest[4] & 1 else -1.0
    norm = math.sqrt(sum(x * x for x in vector)) or 1.0
    return tuple(x / norm for x in vector)


def _likelihood(messages: Sequence[Message], text: str) -> Likelihood:
    words = text.lower().split()
    if not words:
        return Likelihood(-10.0, 0, -10.0)
    asked = {word for message in messages for word in message.content.lower().split()}
    shared = sum(word in asked for word in words) / len(words)
    repeated = 1 - len(Counter(words)) / len(words)
    mean = -2.5 + shared - 4 * repeated
    return Likelihood(mean, len(words), mean)
