"""An answer that is read after its prompt (teacher forcing), in pieces that whoever runs the model chooses."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

from nsllm.governance.ports import HEAD_TOKENS, Likelihood
from nsllm.node.engine.backend import Backend, Cache, Read

if TYPE_CHECKING:
    import torch

R = TypeVar("R")


class Reading:
    """One answer after one prompt.

    Args:
        backend: the model.
        prompt: at least one token.
        answer: at least one token.
        take: is given the logits (tokens, vocabulary) of the answer's next tokens, and where in the answer these begin.
            They hold until the model reads something else.
    """

    def __init__(
        self,
        backend: Backend,
        prompt: Sequence[int],
        answer: Sequence[int],
        take: Callable[[int, torch.Tensor], None],
    ) -> None:
        self._backend = backend
        self._prompt_tokens = len(prompt)
        self._sequence = [*prompt, *answer]
        self._take = take
        self._cache: Cache | None = None

    def open(self) -> bool:
        """Take room for all of it; False: there is none now."""
        self._cache = self._backend.open(self._sequence[: self._prompt_tokens], len(self._sequence), side=True)
        return self._cache is not None

    @property
    def unread(self) -> int:
        """Tokens that are still to be read, of what is open. The answer's last one predicts nothing that is judged."""
        return 0 if self._cache is None else len(self._sequence) - 1 - self._cache.read

    def next_read(self, most: int) -> Read:
        """The next tokens, `most` of them at most; at least one must be unread."""
        assert self._cache is not None
        start = self._cache.read
        end = min(start + most, len(self._sequence) - 1)
        # The token at position p is predicted by the logits after position p - 1.
        keep = max(0, end - max(start, self._prompt_tokens - 1))
        return Read(self._cache, self._sequence[start:end], keep)

    def give(self, logits: torch.Tensor) -> None:
        """What came of the last read: a row for each token that it kept."""
        assert self._cache is not None
        if len(logits):
            self._take(self._cache.read - len(logits) + 1 - self._prompt_tokens, logits)

    def close(self) -> None:
        """Give the room back."""
        if self._cache is not None:
            self._backend.close(self._cache)
            self._cache = None


Wishes = Generator[Sequence[Reading], None, R]
"""Yields what is to be read on next, none of it if there is no room now; goes on once some of it was read."""


def read_all(readings: Sequence[Reading]) -> Wishes[None]:
    """Read them all, side by side where there is room, else one after the other; the room is given back at the end."""
    waiting, running = deque(readings), list[Reading]()
    try:
        while waiting or running:
            while waiting and waiting[0].open():
                running.append(waiting.popleft())
            yield running
            for one in [one for one in running if not one.unread]:
                one.close()
                running.remove(one)
    finally:
        for one in running:
            one.close()


def likelihood(logprobs: Sequence[float]) -> Likelihood:
    """Of the tokens with these log-probabilities; 0.0 over none."""
    head = logprobs[:HEAD_TOKENS]
    mean = math.fsum(logprobs) / len(logprobs) if logprobs else 0.0
    return Likelihood(mean, len(logprobs), math.fsum(head) / len(head) if head else 0.0)
