"""Rates on trio's clock: how much one peer, and all of them together, may ask for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import trio

from nsllm.ids import PeerId


class SlidingWindow:
    """At most `limit` units in any `period_s` seconds."""

    def __init__(self, limit: int, period_s: float) -> None:
        self._limit = limit
        self._period_s = period_s
        self._taken: deque[tuple[float, int]] = deque()
        self._sum = 0

    def take(self, units: int = 1) -> bool:
        """Count `units` if there is room for them; False, and nothing counted, if not."""
        now = self._expire()
        if self._sum + units > self._limit:
            return False
        self._taken.append((now, units))
        self._sum += units
        return True

    def room(self) -> int:
        """Units that may be taken now."""
        self._expire()
        return self._limit - self._sum

    def wait_s(self) -> float:
        """Seconds until the oldest units are given back; 0.0 if there is room."""
        self._expire()
        if self._sum < self._limit:
            return 0.0
        return self._taken[0][0] + self._period_s - trio.current_time()

    @property
    def idle(self) -> bool:
        """Whether nothing is counted now."""
        self._expire()
        return not self._taken

    def _expire(self) -> float:
        """Forget what is too old; the time."""
        now = trio.current_time()
        edge_s = now - self._period_s
        while self._taken and self._taken[0][0] <= edge_s:
            self._sum -= self._taken.popleft()[1]
        return now


@dataclass(frozen=True, slots=True)
class Rate:
    """Bounds on what strangers ask of one protocol."""

    per_peer: int
    total: int
    period_s: float = 60.0


class RateLimiter:
    """A window for each peer and one for all; peers that went quiet are forgotten."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._total = SlidingWindow(rate.total, rate.period_s)
        self._peers: dict[PeerId, SlidingWindow] = {}

    def take(self, peer: PeerId, units: int = 1) -> bool:
        """Count `units` against `peer` and against all; False, and nothing counted, if either is exhausted."""
        window = self._peers.setdefault(peer, SlidingWindow(self._rate.per_peer, self._rate.period_s))
        if self._total.room() < units or not window.take(units):
            return False
        self._total.take(units)
        # What is remembered is bounded by what the total admits in one period.
        if len(self._peers) > self._rate.total:
            self._peers = {known: taken for known, taken in self._peers.items() if not taken.idle}
        return True
