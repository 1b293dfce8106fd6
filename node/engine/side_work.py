"""The worker's side work, embeddings and judging, in bounded pieces that take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from nsllm.node.engine.backend import Backend, TemplateError
from nsllm.node.engine.failures import failed
from nsllm.node.engine.guide import GuideError
from nsllm.node.engine.protocol import Embed, Embedded, Judge, Judged, Refused, Retrace, Retraced
from nsllm.node.engine.retrace import Retracing, likelihood, read_answer


@dataclass(slots=True, eq=False)
class SideJob:
    """An embedding or judging job: each step does one bounded piece, the last one sends the result."""

    job: int
    steps: Generator[None]


class SideWork:
    """Owns all embedding and judging jobs of a worker.

    Args:
        backend: that does them.
        send: takes the results.
    """

    def __init__(self, backend: Backend, send: Callable[[Embedded | Judged | Retraced | Refused], None]) -> None:
        self._backend = backend
        self._send = send
        self._embeds: deque[SideJob] = deque()
        self._judges: deque[SideJob] = deque()
        self._rotation = deque([self._embeds, self._judges])

    @property
    def busy(self) -> bool:
        """There is work to do."""
        return bool(self._embeds or self._judges)

    def embed(self, message: Embed) -> None:
        """Take an embedding job."""
        self._embeds.append(SideJob(message.job, self._embedding(message)))

    def judge(self, message: Judge | Retrace) -> None:
        """Take a judging job."""
        steps = self._judging(message) if isinstance(message, Judge) else self._retracing(message)
        self._judges.append(SideJob(message.job, steps))

    def cancel(self, job: int) -> None:
        """Forget a job, if it is here."""
        for queue in self._rotation:
            for side in [side for side in queue if side.job == job]:
                queue.remove(side)
                side.steps.close()

    def step(self) -> None:
        """One piece of work, of the first kind in rotation that has any."""
        for _ in range(len(self._rotation)):
            self._rotation.rotate(-1)
            if self._rotation[-1]:
                self._advance(self._rotation[-1])
                return

    def _advance(self, queue: deque[SideJob]) -> None:
        """One piece of the first job, which then goes to the end of the queue, or away if it is done."""
        side = queue.popleft()
        try:
            next(side.steps)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
            self._send(failed(side.job, error))
            return
        queue.append(side)

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
        results: list[tuple[float, int, float]] = []
        for conversation, answer in message.items:
            limit = min(message.most_tokens, self._backend.context_tokens - 1)
            tokens = self._backend.tokens(answer[: limit * self._backend.longest_token_chars])[:limit]
            try:
                prompt = self._backend.chat_tokens(conversation)
            except TemplateError as error:
                self._send(Refused(job=message.job, kind="invalid", message=str(error), param="messages"))
                return
            logprobs: list[float] = []
            if tokens:
                for part in self._read_answer(prompt[-(self._backend.context_tokens - len(tokens)) :], tokens):
                    logprobs += part
                    yield
            found = likelihood(logprobs)
            results.append((found.mean_logprob, found.tokens, found.head_logprob))
        self._send(Judged(job=message.job, rows=tuple(results)))

    def _read_answer(self, prompt: list[int], answer: list[int]) -> Generator[list[float]]:
        """Log-probabilities of the answer's tokens after the prompt, chunk by chunk."""
        while (cache := self._backend.open(prompt, len(prompt) + len(answer), side=True)) is None:
            yield []
        try:
            for start, logits in read_answer(self._backend, cache, prompt, answer):
                yield self._backend.log_probabilities(logits, answer[start : start + len(logits)])
        finally:
            self._backend.close(cache)

    def _retracing(self, message: Retrace) -> Generator[None]:
        try:
            steps = Retracing(self._backend, message.claim).steps()
        except (TemplateError, GuideError) as error:
            self._send(Refused(job=message.job, kind="invalid", message=str(error), param="messages"))
            return
        trace = yield from steps
        self._send(Retraced(job=message.job, trace=trace))
