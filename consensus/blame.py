"""Blame: whose fault something was, told to whoever watches; a loud sender fills no log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from nsllm.consensus.events import ConsensusEvent, PeerBlamed
from nsllm.errors import PeerFault
from nsllm.ids import Address, short

LOGGER = logging.getLogger(__name__)

AT_ONCE: Final = 32
"""Faults of one sender that are told, however fast they come."""
EVERY_S: Final = 1.0
"""One more is told after this long; the others are counted only."""


class Blame:
    """Tells of faults, so many of one sender.

    Args:
        observer: told of a fault.
    """

    def __init__(self, observer: Callable[[ConsensusEvent], None]) -> None:
        self._observer = observer
        self._spent_until: dict[Address | None, float] = {}
        """When the sender has all of `AT_ONCE` again."""
        self._passed_over: dict[Address | None, int] = {}

    def tell(self, sender: Address | None, error: PeerFault, now_s: float) -> None:
        """A sender is at fault; None: a source of blocks."""
        spent_until = max(now_s, self._spent_until.get(sender, now_s))
        if spent_until - now_s > (AT_ONCE - 1) * EVERY_S:
            self._passed_over[sender] = self._passed_over.get(sender, 0) + 1
            return
        self._spent_until[sender] = spent_until + EVERY_S
        name = short(sender) if sender is not None else "source"
        more = self._passed_over.pop(sender, 0)
        LOGGER.warning("event=peer_fault peer=%s code=%s passed_over=%d", name, error.code, more)
        self._observer(PeerBlamed(sender, error.code, str(error)))
