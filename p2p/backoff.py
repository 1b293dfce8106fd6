"""Capped exponential back-off with jitter from an injected random source."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double from `first_s` to `cap_s`, each drawn between half and the whole of its step."""

    def __init__(self, rng: random.Random, *, first_s: float, cap_s: float) -> None:
        self._rng = rng
        self._first_s = first_s
        self._cap_s = cap_s
        self._step_s = first_s

    def next_s(self) -> float:
        """The next delay in seconds."""
        delay_s = self._step_s * self._rng.uniform(0.5, 1.0)
        self._step_s = min(self._cap_s, self._step_s * 2)
        return delay_s

    def reset(self) -> None:
        """Start again from `first_s`."""
        self._step_s = self._first_s
