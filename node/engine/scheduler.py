"""The worker's one loop of work: generations, embeddings and judging in turns, none waiting for another to end.

A turn is one pass of the text model over the next token of every running generation and a bounded piece of the prompts
that are not read yet, then one bounded piece of side work: a batch of the encoder or a chunk of an answer that is
judged, these two in rotation. Generations join as soon as the backend has room for all that they may grow to, in the
order they came, and leave at any turn. Single-threaded and without IO: messages in by `handle`, out through `send`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from nsllm.node.engine.backend import Backend, Cache, Read, TemplateError
from nsllm.node.engine.protocol import (
    Cancel,
    Embed,
    Embedded,
    FromWorker,
    Gain,
    Generate,
    Judge,
    Judged,
    Load,
    Ping,
    Pong,
    Refused,
    Started,
    Step,
    ToWorker,
)
from nsllm.node.engine.sampler import Sampler
from nsllm.node.engine.text_stream import TextStream

if TYPE_CHECKING:
    import torch

CHUNK_TOKENS: Final = 64
"""Tokens that the text model reads at once: at most 150 ms of SmolLM2-135M on one thread, all logits included."""
LEAST_CHUNK: Final = 16
"""Prompt tokens in a turn, however many generations run."""
ANSWER_TOKENS: Final = 512
"""Tokens of an answer that are judged (`nsllm.governance.ports.JudgeModels`)."""


@dataclass(slots=True)
class Generation:
    """A running generation."""

    job: int
    prompt: list[int]
    max_tokens: int
    sampler: Sampler
    stream: TextStream
    cache: Cache | None = None
    """None while there is no room for it."""
    tokens: list[int] = field(default_factory=list)

    def next_read(self, most: int) -> Read:
        """What the model reads next of it: the last token, or up to `most` tokens of the prompt."""
        assert self.cache is not None
        if self.tokens:
            return Read(self.cache, self.tokens[-1:], 1)
        chunk = self.prompt[self.cache.read : self.cache.read + most]
        return Read(self.cache, chunk, int(self.cache.read + len(chunk) == len(self.prompt)))


@dataclass(slots=True)
class SideJob:
    """An embedding or judging job: each step does one bounded piece, the last one sends the result."""

    job: int
    steps: Generator[None]


class Scheduler:
    """Owns all jobs of a worker."""

    def __init__(self, backend: Backend, send: Callable[[FromWorker], None]) -> None:
        self._backend = backend
        self._send = send
        self._generations: dict[int, Generation] = {}
        self._embeds: deque[SideJob] = deque()
        self._judges: deque[SideJob] = deque()
        self._rotation = deque([self._embeds, self._judges])

    @property
    def busy(self) -> bool:
        """There is work to do."""
        return bool(self._generations or self._embeds or self._judges)

    def handle(self, message: ToWorker) -> None:
        """Take a message from the peer."""
        match message:
            case Generate():
                self._start(message)
            case Embed():
                self._embeds.append(SideJob(message.job, self._embedding(message)))
            case Judge():
                self._judges.append(SideJob(message.job, self._judging(message)))
            case Cancel(job=job):
                if job in self._generations:
                    self._drop(job)
                for queue in (self._embeds, self._judges):
                    for side in [side for side in queue if side.job == job]:
                        queue.remove(side)
                        side.steps.close()
            case Ping():
                self._send(Pong())

    def step(self) -> None:
        """One pass of the text model: a token for every generation whose prompt is read, and the next of prompts."""
        self._admit()
        running = [one for one in self._generations.values() if one.tokens]
        budget = max(LEAST_CHUNK, CHUNK_TOKENS - len(running))
        reads = [one.next_read(budget) for one in running]
        for one in self._generations.values():
            if one.cache is not None and not one.tokens and budget > 0:
                running.append(one)
                reads.append(one.next_read(budget))
                budget -= len(reads[-1].token_ids)
        if reads:
            gains = [
                self._accept(generation, logits[0])
                for generation, logits in zip(running, self._backend.forward(reads), strict=True)
                if len(logits)
            ]
            self._send(Step(tuple(gains), Load(0.0, 0, 0, 0, 0, 0, 0, 0, 0)))

    def side(self) -> None:
        """One piece of side work, of the first kind in rotation that has any."""
        for _ in range(len(self._rotation)):
            self._rotation.rotate(-1)
            if _advance(self._rotation[-1]):
                return

    def _admit(self) -> None:
        """Give room to those who wait, in order, as long as there is any."""
        for one in self._generations.values():
            if one.cache is None:
                one.cache = self._backend.open(one.prompt, len(one.prompt) + one.max_tokens, side=False)
                if one.cache is None:
                    return

    def _drop(self, job: int) -> None:
        cache = self._generations.pop(job).cache
        if cache is not None:
            self._backend.close(cache)

    def _start(self, message: Generate) -> None:
        request = message.request
        context = self._backend.context_tokens
        chars = sum(len(turn.content) for turn in request.messages)
        if chars > context * self._backend.longest_token_chars:
            at_least = chars // self._backend.longest_token_chars
            self._refuse_overflow(message.job, f"at least {at_least}")
            return
        try:
            prompt = self._backend.chat_tokens(request.messages)
        except TemplateError as error:
            self._send(Refused(job=message.job, kind="invalid", message=str(error), param="messages"))
            return
        if len(prompt) + 1 > context:
            self._refuse_overflow(message.job, str(len(prompt)))
            return
        max_tokens = min(request.sampling.max_tokens or message.max_tokens_cap, context - len(prompt))
        self._generations[message.job] = Generation(
            job=message.job,
            prompt=prompt,
            max_tokens=max_tokens,
            sampler=Sampler(request.sampling, prompt),
            stream=TextStream(self._backend.text, request.sampling.stop),
        )
        self._send(Started(job=message.job, prompt_token_ids=tuple(prompt), max_tokens=max_tokens))

    def _refuse_overflow(self, job: int, tokens: str) -> None:
        context = self._backend.context_tokens
        said = f"the conversation is {tokens} tokens long, this model's context is {context} tokens, answer included"
        self._send(Refused(job=job, kind="overflow", message=said, param="messages"))

    def _accept(self, generation: Generation, logits: torch.Tensor) -> Gain:
        """Choose the next token from `logits` (vocabulary,), and end the generation if that ends it."""
        token = generation.sampler.choose(logits).token
        generation.tokens.append(token)
        reason: Literal["stop", "length"] | None = None
        if token in self._backend.end_token_ids:
            text, reason = generation.stream.finish(), "stop"
        else:
            text = generation.stream.push(token)
            if generation.stream.stopped:
                reason = "stop"
            elif len(generation.tokens) >= generation.max_tokens:
                text, reason = text + generation.stream.finish(), "length"
        if reason is not None:
            self._drop(generation.job)
        return Gain(generation.job, (token,), text, reason)

    def _embedding(self, message: Embed) -> Generator[None]:
        vectors = [b""] * len(message.texts)
        tokens = 0
        for indexes, rows, read in self._backend.embed(message.texts):
            tokens += read
            for index, row in zip(indexes, rows, strict=True):
                vectors[index] = row.numpy().astype("<f4").tobytes()
            yield
        self._send(Embedded(job=message.job, vectors=tuple(vectors), tokens=tokens))

    def _judging(self, message: Judge) -> Generator[None]:
        """One sequence at a time, so that a score never depends on what else is being judged."""
        results: list[tuple[float, int]] = []
        for conversation, answer in message.items:
            limit = min(ANSWER_TOKENS, self._backend.context_tokens - 1)
            tokens = self._backend.tokens(answer[: limit * self._backend.longest_token_chars])[:limit]
            try:
                prompt = self._backend.chat_tokens(conversation)
            except TemplateError as error:
                self._send(Refused(job=message.job, kind="invalid", message=str(error), param="messages"))
                return
            total = 0.0
            if tokens:
                for part in self._read_answer(prompt[-(self._backend.context_tokens - len(tokens)) :], tokens):
                    total += part
                    yield
            results.append((total / len(tokens) if tokens else 0.0, len(tokens)))
        self._send(Judged(job=message.job, rows=tuple(results)))

    def _read_answer(self, prompt: list[int], answer: list[int]) -> Generator[float]:
        """Sums of log-probabilities of the answer's tokens after the prompt, chunk by chunk."""
        sequence = prompt + answer
        while (cache := self._backend.open(prompt, len(sequence), side=True)) is None:
            yield 0.0
        try:
            while (start := cache.read) < len(sequence) - 1:
                end = min(start + CHUNK_TOKENS, len(sequence) - 1)
                # The token at position p is predicted by the logits after position p - 1.
                keep = max(0, end - max(start, len(prompt) - 1))
                (logits,) = self._backend.forward([Read(cache, sequence[start:end], keep)])
                yield math.fsum(self._backend.log_probabilities(logits, sequence[end - keep + 1 : end + 1]))
        finally:
            self._backend.close(cache)


def _advance(queue: deque[SideJob]) -> bool:
    """One step of the first job, which then goes to the end of the queue, or away if it is done."""
    if not queue:
        return False
    side = queue.popleft()
    try:
        next(side.steps)
    except StopIteration:
        return True
    queue.append(side)
    return True
