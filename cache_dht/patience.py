"""How long an answer whose first token is ready waits for a look-up that still runs. Pure.

A remote look-up runs beside the prefill. Whoever has no answer by then is waited for as long as look-ups of late made
likely, never long: a holder that hangs must not hold up every answer.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

LEAST_S: Final = 0.1
"""A busy holder's answer; only look-ups that are slower than the prefill wait at all."""
MOST_S: Final = 1.0
TIMES: Final = 4.0
"""The wait, in medians of what look-ups took."""
REMEMBERED: Final = 33


class Patience:
    """Remembers what look-ups took."""

    def __init__(self) -> None:
        self._took_s: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, took_s: float) -> None:
        """A look-up ended, or was given up, after this long."""
        self._took_s.append(took_s)

    @property
    def wait_s(self) -> float:
        """From the first token on; the most as long as nothing is known."""
        if not self._took_s:
            return MOST_S
        return min(MOST_S, max(LEAST_S, TIMES * median(self._took_s)))
