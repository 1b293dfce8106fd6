"""The worker's one loop of work: generations, embeddings and judging in turns, none waiting for another to end.

A turn is one decode step for every running generation, then one bounded piece of heavy work: a chunk of a prompt, a
batch of the encoder, or a chunk of an answer that is judged, these three in rotation. Single-threaded and without IO:
messages in by `handle`, messages out through `send`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import torch

from nsllm.node.engine.backend import Backend, Cache, TemplateError
from nsllm.node.engine.protocol import (
    Cancel,
    Embed,
    Embedded,
    Finished,
    FromWorker,
    Generate,
    Judge,
    Judged,
    Ping,
    Pong,
    Refused,
    Started,
    Tokens,
    ToWorker,
)
from nsllm.node.engine.sampler import Sampler
from nsllm.node.engine.text_stream import TextStream

CHUNK_TOKENS: Final = 64
"""Tokens that the text model reads at once: at most 150 ms of SmolLM2-135M on one thread, all logits included."""
ANSWER_TOKENS: Final = 512
"""Tokens of an answer that are judged (`nsllm.governance.ports.JudgeModels`)."""


@dataclass(slots=True)
class Generation:
    """A running generation."""

    job: int
    cache: Cache
    prompt: list[int]
    max_tokens: int
    sampler: Sampler
    stream: TextStream
    read: int = 0
    """Prompt tokens that are in the cache."""
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class HeavyJob:
    """An embedding or judging job: each step does one bounded piece, the last one sends the result."""

    job: int
    steps: Iterator[None]


class Scheduler:
    """Owns all jobs of a worker."""

    def __init__(self, backend: Backend, send: Callable[[FromWorker], None]) -> None:
        self._backend = backend
        self._send = send
        self._generations: dict[int, Generation] = {}
        self._embeds: deque[HeavyJob] = deque()
        self._judges: deque[HeavyJob] = deque()
        self._rotation: deque[Callable[[], bool]] = deque([self._prefill_one, self._embed_one, self._judge_one])

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
                self._embeds.append(HeavyJob(message.job, self._embedding(message)))
            case Judge():
                self._judges.append(HeavyJob(message.job, self._judging(message)))
            case Cancel(job=job):
                self._generations.pop(job, None)
                for queue in (self._embeds, self._judges):
                    for heavy in [heavy for heavy in queue if heavy.job == job]:
                        queue.remove(heavy)
            case Ping():
                self._send(Pong())

    def decode(self) -> None:
        """One step of every generation whose prompt is read."""
        running = [generation for generation in self._generations.values() if generation.tokens]
        if running:
            logits = self._backend.decode_step([(one.cache, one.tokens[-1]) for one in running])
            for generation, row in zip(running, logits, strict=True):
                self._accept(generation, row)

    def heavy(self) -> None:
        """One piece of heavy work, of the first kind in rotation that has any."""
        for _ in range(len(self._rotation)):
            self._rotation.rotate(-1)
            if self._rotation[-1]():
                return

    def _start(self, message: Generate) -> None:
        context = self._backend.context_tokens
        chars = sum(len(turn.content) for turn in message.messages)
        if chars > context * self._backend.longest_token_chars:
            at_least = chars // self._backend.longest_token_chars
            self._refuse_overflow(message.job, f"at least {at_least}")
            return
        try:
            prompt = self._backend.chat_tokens(message.messages)
        except TemplateError as error:
            self._send(Refused(job=message.job, kind="invalid", message=str(error)))
            return
        if len(prompt) + 1 > context:
            self._refuse_overflow(message.job, str(len(prompt)))
            return
        max_tokens = min(message.sampling.max_tokens or message.max_tokens_cap, context - len(prompt))
        self._generations[message.job] = Generation(
            job=message.job,
            cache=self._backend.open(),
            prompt=prompt,
            max_tokens=max_tokens,
            sampler=Sampler(message.sampling, prompt),
            stream=TextStream(self._backend.text, message.sampling.stop),
        )
        self._send(Started(job=message.job, prompt_token_ids=tuple(prompt), max_tokens=max_tokens))

    def _refuse_overflow(self, job: int, tokens: str) -> None:
        context = self._backend.context_tokens
        said = f"the conversation is {tokens} tokens long, this model's context is {context} tokens, answer included"
        self._send(Refused(job=job, kind="overflow", message=said))

    def _accept(self, generation: Generation, logits: torch.Tensor) -> None:
        """Choose the next token from `logits` (vocabulary,), say it, and end the generation if that ends it."""
        token = generation.sampler.choose(logits)
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
        self._send(Tokens(job=generation.job, token_ids=(token,), text=text))
        if reason is not None:
            del self._generations[generation.job]
            self._send(Finished(job=generation.job, reason=reason))

    def _prefill_one(self) -> bool:
        """A chunk of the oldest unread prompt; its last chunk gives the first token."""
        generation = next((one for one in self._generations.values() if not one.tokens), None)
        if generation is None:
            return False
        chunk = generation.prompt[generation.read : generation.read + CHUNK_TOKENS]
        generation.read += len(chunk)
        logits = self._backend.prefill(generation.cache, chunk, 1)
        if generation.read == len(generation.prompt):
            self._accept(generation, logits[0])
        return True

    def _embed_one(self) -> bool:
        return _advance(self._embeds)

    def _judge_one(self) -> bool:
        return _advance(self._judges)

    def _embedding(self, message: Embed) -> Iterator[None]:
        vectors = [b""] * len(message.texts)
        tokens = 0
        for indexes, rows, read in self._backend.embed(message.texts):
            tokens += read
            for index, row in zip(indexes, rows, strict=True):
                vectors[index] = row.numpy().astype("<f4").tobytes()
            yield
        self._send(Embedded(job=message.job, vectors=tuple(vectors), tokens=tokens))

    def _judging(self, message: Judge) -> Iterator[None]:
        """One sequence at a time, so that a score never depends on what else is being judged."""
        results: list[tuple[float, int]] = []
        for conversation, answer in message.items:
            limit = min(ANSWER_TOKENS, self._backend.context_tokens - 1)
            tokens = self._backend.tokens(answer[: limit * self._backend.longest_token_chars])[:limit]
            try:
                prompt = self._backend.chat_tokens(conversation)
            except TemplateError as error:
                self._send(Refused(job=message.job, kind="invalid", message=str(error)))
                return
            total = 0.0
            for part in self._read_answer(prompt, tokens):
                total += part
                yield
            results.append((total / len(tokens) if tokens else 0.0, len(tokens)))
        self._send(Judged(job=message.job, rows=tuple(results)))

    def _read_answer(self, prompt: list[int], answer: list[int]) -> Iterator[float]:
        """Sums of log-probabilities of the answer's tokens after the prompt, chunk by chunk."""
        prompt = prompt[-(self._backend.context_tokens - len(answer)) :]  # a long prompt loses its beginning
        sequence = prompt + answer
        cache = self._backend.open()
        for start in range(0, len(sequence) - 1 if answer else 0, CHUNK_TOKENS):
            end = min(start + CHUNK_TOKENS, len(sequence) - 1)
            # The token at position p is predicted by the logits after position p - 1.
            keep = max(0, end - max(start, len(prompt) - 1))
            logits = self._backend.prefill(cache, sequence[start:end], keep)
            wanted = torch.tensor(sequence[end - keep + 1 : end + 1], dtype=torch.long)
            chosen = logits.gather(1, wanted.unsqueeze(1)).squeeze(1)
            yield float((chosen - logits.logsumexp(1)).double().sum())


def _advance(queue: deque[HeavyJob]) -> bool:
    """One step of the first job, which then goes to the end of the queue, or away if it is done."""
    if not queue:
        return False
    heavy = queue.popleft()
    try:
        next(heavy.steps)
    except StopIteration:
        return True
    queue.append(heavy)
    return True
