"""When the next anchor transaction may go into a block: at most once a second, less often while anchors fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from nsllm.ids import TimeMs

ANCHOR_INTERVAL_MS: Final = 1_000
"""Least time between two blocks with an anchor transaction; a rule of valid blocks."""
MAX_BACKOFF_MS: Final = 60_000
"""Longest wait of a proposer after anchors that failed."""


@dataclass(frozen=True, slots=True)
class Anchoring:
    """State of the anchors after the last block."""

    size: int = 0
    """Log size of the contract's head."""
    last_ms: TimeMs | None = None
    """Time of the last block with a transaction."""
    epoch: int = 0
    """The epoch whose validators the contract knows."""
    failed: int = 0
    """Attempts in a row that did not move the head; a hint for proposers, forgotten on restart."""
    tried_ms: int = 0
    """Time of the last failed attempt."""

    def allowed_from_ms(self) -> TimeMs:
        """Earliest time of the next block with a transaction, by the rules."""
        return TimeMs(0 if self.last_ms is None else self.last_ms + ANCHOR_INTERVAL_MS)

    def due_in_ms(self, log_size: int, now_ms: TimeMs, *, handover: bool = False) -> int | None:
        """Milliseconds until a proposer anchors a log of `log_size` (0: now); None while it has not grown.

        Args:
            log_size: entries of the log.
            now_ms: wall time.
            handover: the contract still knows an earlier epoch's validators, so that it has something to learn anyway.
        """
        if log_size <= self.size and not handover:
            return None
        backoff_ms = min(MAX_BACKOFF_MS, ANCHOR_INTERVAL_MS << min(self.failed, 10)) if self.failed else 0
        return max(0, self.allowed_from_ms() - now_ms, self.tried_ms + backoff_ms - now_ms)

    def executed(self, size: int, time_ms: TimeMs) -> Anchoring:
        """After a block of `time_ms` with a transaction left the contract's head at `size`."""
        if size > self.size:
            return Anchoring(size=size, last_ms=time_ms, epoch=self.epoch)
        return replace(self.refused(time_ms), last_ms=time_ms)

    def handed_over(self, time_ms: TimeMs) -> Anchoring:
        """After a block of `time_ms` that taught the contract another epoch, of a log that had not grown."""
        return Anchoring(size=self.size, last_ms=time_ms, epoch=self.epoch)

    def refused(self, now_ms: TimeMs) -> Anchoring:
        """After an attempt that did not move the head."""
        return replace(self, failed=self.failed + 1, tried_ms=now_ms)
