"""What was observed of reuse: how often a found answer was right, by place and likeness. Counts only, no questions.

A grow-only counter for each observer: two tallies merge by the larger count, in any order and as often as one likes, so
peers share them without sharing a prompt. Whatever one observer says of one place counts up to a limit, and of all
others those that say the most are left out: as many as may lie. So liars add no more than honest observers have seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nsllm.ids import Address

BINS: Final = 20
LOWEST: Final = -7.0
"""Likeness at the lower edge of the first bin; each is 1 wide, and the last one has no end."""
CAP: Final = 24
"""Observations of another observer that count at one place; more are scaled down to it. This peer has `OWN_CAP`."""
OWN_CAP: Final = 400

MOST: Final = 4096
"""Places that one other observer may tell of."""
UNSHARED: Final = Address(bytes(20))
"""In place of this peer's own address, for what it observed in private questions and groups: never told to others."""

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
    _at: dict[Place, set[Address]] = field(default_factory=dict[Place, set[Address]])
    """Who observed something at a place."""
    _places: Counter[Address] = field(default_factory=Counter[Address])
    """How many places each observer has."""

    def __post_init__(self) -> None:
        for observer, place in self.counters:
            self._at.setdefault(place, set()).add(observer)
            self._places[observer] += 1

    def counter(self, observer: Address, place: Place) -> list[int]:
        """The counter of one observer at one place, which may be written to."""
        known = self._at.setdefault(place, set())
        if observer not in known:
            known.add(observer)
            self._places[observer] += 1
        return self.counters.setdefault((observer, place), [0] * (2 * BINS))

    def note(self, observer: Address, place: Place, likeness: float, *, right: bool) -> list[int]:
        """Count one observation; the counter as it is now."""
        counter = self.counter(observer, place)
        counter[bin_of(likeness) + (0 if right else BINS)] += 1
        return counter

    def merge(self, other: Tally) -> None:
        """Take in what another tally knows: the larger count of each; no more places of an observer than `MOST`."""
        for key, theirs in other.counters.items():
            if key not in self.counters and self._places[key[0]] >= MOST:
                continue
            ours = self.counter(*key)
            ours[:] = map(max, ours, theirs)

    def at(self, place: Place, own: frozenset[Address], without: Address | None = None) -> Counts:
        """What counts at a place: what this peer saw, and of every other observer no more than its cap.

        Of n observers (n-1)//3 others may lie: those that claim the most right answers are left out of the right ones,
        those that claim the most wrong ones out of the wrong ones.

        Args:
            place: where.
            own: names that this peer itself observes under.
            without: an observer whose word does not count here.
        """
        ours, others = [0.0] * (2 * BINS), list[list[float]]()
        for observer in self._at.get(place, ()):
            counter = self.counters[observer, place]
            if observer in own:
                ours = [sum_ + count for sum_, count in zip(ours, _capped(counter, OWN_CAP), strict=True)]
            elif observer != without:
                others.append(_capped(counter, CAP))
        if not others:
            return tuple(ours)
        keep = len(others) - len(others) // 3
        right = sorted(others, key=lambda counts: sum(counts[:BINS]))[:keep]
        wrong = sorted(others, key=lambda counts: sum(counts[BINS:]))[:keep]
        theirs = [*map(sum, zip(*(c[:BINS] for c in right), strict=True))]
        theirs += map(sum, zip(*(c[BINS:] for c in wrong), strict=True))
        return tuple(own_ + their for own_, their in zip(ours, theirs, strict=True))

    def rows(self) -> Iterator[tuple[Address, Place, tuple[int, ...]]]:
        """Every counter."""
        for (observer, place), counter in self.counters.items():
            yield observer, place, tuple(counter)


def _capped(counter: list[int], cap: int) -> list[float]:
    """A counter, scaled down to so many observations if it has more."""
    scale = min(1.0, cap / max(1, sum(counter)))
    return [scale * count for count in counter]
