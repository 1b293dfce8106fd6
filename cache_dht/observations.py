"""What was observed of reuse: how often a found answer was right, by place and likeness. Counts only, no questions.

A grow-only counter for each observer: two tallies merge by the larger count, in any order and as often as one likes, so
peers may share them later without sharing a prompt. Whatever one observer says of one place counts up to a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nsllm.ids import Address

BINS: Final = 20
LOWEST: Final = -7.0
"""Likeness at the lower edge of the first bin; each is 1 wide, and the last one has no end."""
CAP: Final = 24
"""Observations of one observer that count at one place; more are scaled down to it. This peer itself has `OWN_CAP`."""
OWN_CAP: Final = 400

Place = bytes
"""A neighbourhood (a coarse cell of the embedding space) or one record's digest."""
Counts = tuple[float, ...]
"""Right answers by bin, then wrong ones by bin: 2 * `BINS` numbers."""


def bin_of(likeness: float) -> int:
    """Bin of a likeness.

    >>> bin_of(-100.0), bin_of(0.2), bin_of(100.0)
    (0, 7, 19)
    """
    return max(0, min(BINS - 1, math.floor(likeness - LOWEST)))


@dataclass(slots=True)
class Tally:
    """Counters by observer and place."""

    counters: dict[tuple[Address, Place], list[int]] = field(default_factory=dict[tuple[Address, Place], list[int]])

    def note(self, observer: Address, place: Place, likeness: float, *, right: bool) -> list[int]:
        """Count one observation; the counter as it is now."""
        counter = self.counters.setdefault((observer, place), [0] * (2 * BINS))
        counter[bin_of(likeness) + (0 if right else BINS)] += 1
        return counter

    def merge(self, other: Tally) -> None:
        """Take in what another tally knows: the larger count of each."""
        for key, theirs in other.counters.items():
            ours = self.counters.setdefault(key, [0] * (2 * BINS))
            ours[:] = map(max, ours, theirs)

    def at(self, place: Place, observers: tuple[Address, ...], own: Address) -> Counts:
        """What counts at a place: the sum over observers, none above its cap."""
        total = [0.0] * (2 * BINS)
        for observer in observers:
            counter = self.counters.get((observer, place))
            if counter is not None:
                cap = OWN_CAP if observer == own else CAP
                scale = min(1.0, cap / max(1, sum(counter)))
                total = [sum_ + scale * count for sum_, count in zip(total, counter, strict=True)]
        return tuple(total)

    def rows(self) -> Iterator[tuple[Address, Place, tuple[int, ...]]]:
        """Every counter."""
        for (observer, place), counter in self.counters.items():
            yield observer, place, tuple(counter)
