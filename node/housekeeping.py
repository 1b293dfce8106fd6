"""Housekeeping: what a peer keeps of its own past is bounded, finished completions and its own log alike."""

from __future__ import annotations

import logging
from typing import Final

import trio

from nsllm.governance.ledger import Ledger
from nsllm.governance.peer_log import PeerLog
from nsllm.node.completions import Completions
from nsllm.node.config import HistoryConfig
from nsllm.node.context import PeerContext

log = logging.getLogger(__name__)

FIRST_S: Final = 300.0
"""A peer that starts has more urgent things to do."""
EVERY_S: Final = 3600.0
PAUSE_S: Final = 0.2
"""Between two transactions: answers are written in between."""
DAY_MS: Final = 86_400_000


class Housekeeper:
    """Forgets what is older than the settings keep, in small transactions; whatever a kill interrupts goes on later."""

    def __init__(
        self,
        *,
        context: PeerContext,
        completions: Completions,
        peer_log: PeerLog,
        ledger: Ledger,
        config: HistoryConfig,
    ) -> None:
        self._context = context
        self._completions = completions
        self._peer_log = peer_log
        self._ledger = ledger
        self._config = config

    async def run(self) -> None:
        """Tidy up from time to time, until cancelled. Raises `StorageError`."""
        await trio.sleep(FIRST_S)
        while True:
            await self.tidy()
            await trio.sleep(EVERY_S)

    async def tidy(self) -> tuple[int, int]:
        """Forget what may be forgotten now: so many completions, and so many entries of the log."""
        config, completions, entries = self._config, 0, 0
        while gone := await self._completions.forget(
            self._context.clock.now_ms(), keep=config.completions, keep_ms=config.days * DAY_MS
        ):
            completions += gone
            await trio.sleep(PAUSE_S)
        if config.log_entries:
            # What is checkpointed in the network log must be shown to have only grown: entries after it are needed.
            most = await self._ledger.checkpointed(self._context.address)
            first = min(self._peer_log.size - config.log_entries, most)
            while gone := await self._peer_log.prune(first):
                entries += gone
                await trio.sleep(PAUSE_S)
        if completions or entries:
            log.info("past_forgotten completions=%d log_entries=%d", completions, entries)
        return completions, entries
