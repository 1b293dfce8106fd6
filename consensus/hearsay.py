"""Hearsay: heights that somebody says are decided, and early messages of an epoch whose validators we do not know yet.

None of it can be checked here. A claim is worth a few fetches, whose blocks prove themselves; an early message is kept
until we are where it can be judged.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from nsllm.consensus.message import Body
from nsllm.ids import Address, Height

MAX_MISSES: Final = 5
"""Fetches in a row that a claim which brings nothing is worth."""
MAX_EARLY: Final = 64
"""Messages that are kept, of all senders together."""


class Hearsay:
    """What others say, unproved and bounded."""

    def __init__(self) -> None:
        self._claimed = Height(0)
        self._misses = 0
        self._early: deque[tuple[Address, Body]] = deque(maxlen=MAX_EARLY)

    @property
    def claimed(self) -> Height:
        """Highest height that somebody says is decided."""
        return self._claimed

    def claim(self, height: Height, tip: Height) -> bool:
        """Somebody says that `height` is decided; True if it is above all that we knew."""
        if height <= max(self._claimed, tip):
            return False
        self._claimed, self._misses = height, 0
        return True

    def fetched(self, tip: Height, *, news: bool) -> None:
        """A fetch is over; claims that keep bringing nothing are forgotten."""
        self._misses = 0 if news else self._misses + 1
        if self._misses >= MAX_MISSES:
            self._claimed = tip

    def keep(self, sender: Address, body: Body) -> None:
        """Keep a message of the next height."""
        self._early.append((sender, body))

    def release(self) -> list[tuple[Address, Body]]:
        """The kept messages, now that we are at another height; they are forgotten here."""
        kept = list(self._early)
        self._early.clear()
        return kept
