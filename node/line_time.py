"""How long a stretch of an answer's road will take: from who is on it, and how fast others have left it of late."""

from __future__ import annotations

from collections import deque
from typing import Final

REMEMBERED: Final = 32
"""Last ones who passed that the pace is taken from: who came together passes together, so a few say little."""
FORESIGHT: Final = 2
"""Where many are served at once: so many times as many as were seen there are believed to slow each other down."""


class LineTime:
    """One stretch. Time counts while somebody is on it, so that a peer which nobody asks is not taken for a slow one.

    Times are seconds of any clock that never goes back.

    >>> line = LineTime()
    >>> line.enter(0.0), line.enter(0.0), line.leave(2.0), line.leave(4.0)
    (None, None, None, None)
    >>> line.wait_s(3, 9.0)
    6.0
    """

    def __init__(self, *, at_once: bool = False) -> None:
        """Empty, and nobody knows how fast it is.

        Args:
            at_once: those on it are served together. Else one after the other, and each newcomer waits for all.
        """
        self._at_once = at_once
        self._inside = 0
        self._now_s = 0.0
        self._busy_s = 0.0
        self._area_s = 0.0
        """Seconds that all together have been on it; both since the last one passed."""
        self._passed: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    @property
    def inside(self) -> int:
        """How many are on it."""
        return self._inside

    def enter(self, now_s: float) -> None:
        """One comes."""
        self._advance(now_s)
        self._inside += 1

    def leave(self, now_s: float, *, passed: bool = True) -> None:
        """One goes, at the end or (not `passed`) earlier."""
        self._advance(now_s)
        self._inside -= 1
        if passed:
            self._passed.append((self._busy_s, self._area_s))
            self._busy_s = self._area_s = 0.0

    def wait_s(self, ahead: int, now_s: float) -> float:
        """Until so many that are ahead have passed. As long as nobody has, one takes what they have waited for it."""
        self._advance(now_s)
        if not ahead:
            return 0.0
        if not self._passed:
            return self._busy_s if self._at_once else ahead * self._busy_s
        busy_s = sum(busy for busy, _ in self._passed)
        if self._busy_s > busy_s / len(self._passed):  # longer than usual since the last one
            busy_s += self._busy_s
        one_s = busy_s / len(self._passed)
        if self._at_once and busy_s:
            seen = sum(area for _, area in self._passed) / busy_s
            return min(float(ahead), FORESIGHT * max(1.0, seen)) * one_s
        return ahead * one_s

    def _advance(self, now_s: float) -> None:
        gone_s = max(0.0, now_s - self._now_s)
        self._now_s += gone_s
        if self._inside:
            self._busy_s += gone_s
            self._area_s += gone_s * self._inside
