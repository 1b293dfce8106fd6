"""Time from outside: wall milliseconds for what is written down, trio's clock for waiting.

Waiting always uses trio (`trio.sleep`, `trio.fail_after`, `trio.current_time`), which a simulation replaces with
`MockClock`. Wall time that is signed, stored or shown comes from a `Clock`, so that a simulation owns it too.
"""

from __future__ import annotations

import time
from typing import Protocol

import trio

from nsllm.ids import TimeMs


class Clock(Protocol):
    """Source of wall time."""

    def now_ms(self) -> TimeMs:
        """Milliseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now_ms(self) -> TimeMs:
        """Milliseconds since the Unix epoch, as the operating system tells."""
        return TimeMs(time.time_ns() // 1_000_000)


class TrioClock:
    """Wall time that follows trio's clock from a fixed start: under `MockClock`, virtual time."""

    def __init__(self, start_ms: TimeMs) -> None:
        self._start_ms = start_ms

    def now_ms(self) -> TimeMs:
        """Start plus trio's seconds, in whole milliseconds."""
        return TimeMs(self._start_ms + int(trio.current_time() * 1000))
