"""Embedding jobs of a worker: texts of whoever waits are read together, each job in its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nsllm.node.engine.backend import Encoder, TokenError
from nsllm.node.engine.failures import failed
from nsllm.node.engine.protocol import Embed, Embedded, Refused

BATCH_TOKENS: Final = 512
"""Tokens, padding included, that are read at once: about 100 ms on one thread."""


@dataclass(slots=True, eq=False)
class Embedding:
    """A job: its texts' tokens, and their vectors as far as they are known."""

    job: int
    rows: list[list[int]]
    """Token ids a text."""
    order: deque[int]
    """Texts that are still to be read, short ones first: those that are read together are padded to the longest."""
    vectors: list[bytes]


class Embeddings:
    """Owns the embedding jobs.

    A public question needs its embedding before anything else can happen to it. Read one by one between passes of the
    text model, a burst of questions would wait for each other longer than for their answers.

    Args:
        encoder: reads the texts.
        send: takes the results.
    """

    def __init__(self, encoder: Encoder, send: Callable[[Embedded | Refused], None]) -> None:
        self._encoder = encoder
        self._send = send
        self._jobs: deque[Embedding] = deque()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, message: Embed) -> None:
        """Take a job."""
        if not message.texts:
            self._send(Embedded(job=message.job, vectors=(), tokens=0))
            return
        try:
            rows = self._encoder.read(message.texts, message.most_tokens)
        except TokenError as error:
            self._send(Refused(job=message.job, kind="invalid", message=str(error), param="input"))
            return
        except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
            self._send(failed(message.job, error))
            return
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
        self._jobs.append(Embedding(message.job, rows, deque(order), [b""] * len(rows)))

    def cancel(self, job: int) -> None:
        """Forget a job, if it is here."""
        self._jobs = deque(one for one in self._jobs if one.job != job)

    def step(self) -> None:
        """Read one batch: a text of each job in turn, until the batch is full."""
        batch: list[tuple[Embedding, int]] = []
        width = 0
        while self._jobs:
            first = self._jobs[0]
            if not first.order:
                self._jobs.popleft()  # what is left of it is in this batch
                continue
            wider = max(width, len(first.rows[first.order[0]]))
            if batch and (len(batch) + 1) * wider > BATCH_TOKENS:
                break
            width = wider
            batch.append((first, first.order.popleft()))
            self._jobs.rotate(-1)
        self._read(batch)

    def _read(self, batch: list[tuple[Embedding, int]]) -> None:
        jobs = {one.job: one for one, _ in batch}
        try:
            vectors = self._encoder.vectors([one.rows[index] for one, index in batch])
        except Exception as error:  # noqa: BLE001 - of these jobs only
            for job in jobs:
                self.cancel(job)
                self._send(failed(job, error))
            return
        for (one, index), row in zip(batch, vectors, strict=True):
            one.vectors[index] = row.numpy().astype("<f4").tobytes()
        for one in jobs.values():
            if not one.order:
                self.cancel(one.job)
                tokens = sum(map(len, one.rows))
                self._send(Embedded(job=one.job, vectors=tuple(one.vectors), tokens=tokens))
