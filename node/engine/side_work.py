"""The worker's side work, embeddings and judging, in bounded pieces that take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from nsllm.node.engine.backend import Backend, TemplateError
from nsllm.node.engine.embeddings import Embeddings
from nsllm.node.engine.failures import failed
from nsllm.node.engine.guide import GuideError
from nsllm.node.engine.prompt import PromptError
from nsllm.node.engine.protocol import Embed, Embedded, Judge, Judged, Refused, Retrace, Retraced
from nsllm.node.engine.retrace import Retracing, likelihood, read_answer


@dataclass(slots=True, eq=False)
class SideJob:
    """A judging job: each step does one bounded piece, the last one sends the result."""

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
        self._embeddings = Embeddings(backend.encoder, send)
        self._judges: deque[SideJob] = deque()
        self._judged = False
        """The last piece of work was of a judging job."""

    @property
    def busy(self) -> bool:
        """There is work to do."""
        return bool(self._embeddings or self._judges)

    def embed(self, message: Embed) -> None:
        """Take an embedding job."""
        self._embeddings.add(message)

    def judge(self, message: Judge | Retrace) -> None:
        """Take a judging job."""
        steps = self._judging(message) if isinstance(message, Judge) else self._retracing(message)
        self._judges.append(SideJob(message.job, steps))

    def cancel(self, job: int) -> None:
        """Forget a job, if it is here."""
        self._embeddings.cancel(job)
        for side in [side for side in self._judges if side.job == job]:
            self._judges.remove(side)
            side.steps.close()

    def step(self) -> None:
        """One piece of work, of both kinds in turns."""
        self._judged = bool(self._judges) and not (self._judged and self._embeddings)
        if self._judged:
            self._advance()
        else:
            self._embeddings.step()

    def _advance(self) -> None:
        """One piece of the first judging job, which then goes to the end of the queue, or away if it is done."""
        side = self._judges.popleft()
        try:
            next(side.steps)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
            self._send(failed(side.job, error))
            return
        self._judges.append(side)

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
            steps = Retracing(self._backend, message.claim, message.card).steps()
        except (PromptError, GuideError) as error:
            self._send(Refused(job=message.job, kind="invalid", message=str(error), param=error.param))
            return
        trace = yield from steps
        self._send(Retraced(job=message.job, trace=trace))
