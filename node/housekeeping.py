"""Housekeeping: what a peer keeps of its own past is bounded: finished completions, their proofs, and its own log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.governance.ledger import Ledger
from nsllm.governance.peer_log import PeerLog
from nsllm.ids import Digest
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
PROOFS_AT_ONCE: Final = 500
"""In one look and one transaction: blocks wait for it."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How much was."""

    completions: int = 0
    proofs: int = 0
    log_entries: int = 0


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

    async def tidy(self) -> Forgotten:
        """Forget what may be forgotten now."""
        gone = Forgotten(
            completions=await self._forget_completions(),
            proofs=await self._forget_proofs(),
            log_entries=await self._forget_log_entries(),
        )
        if gone != Forgotten():
            log.info(
                "past_forgotten completions=%d proofs=%d log_entries=%d",
                gone.completions,
                gone.proofs,
                gone.log_entries,
            )
        return gone

    async def _forget_completions(self) -> int:
        config, count = self._config, 0
        while gone := await self._completions.forget(
            self._context.clock.now_ms(), keep=config.completions, keep_ms=config.days * DAY_MS
        ):
            count += gone
            await trio.sleep(PAUSE_S)
        return count

    async def _forget_proofs(self) -> int:
        """Forget proofs that outlived their blocks and that no receipt is made from any more.

        All of them are looked at each time: a block may go long after the completion of its record.
        """
        if not self._config.completions and not self._config.days:
            return 0  # all completions are kept: one that is missing was lost, and may come back with a backup
        count = 0
        last: Digest | None = None
        while page := await self._ledger.proofs.kept(last, PROOFS_AT_ONCE):
            last = page[-1]
            if unused := await self._completions.unused(page):
                await self._ledger.proofs.forget(unused)
                count += len(unused)
                await trio.sleep(PAUSE_S)
        return count

    async def _forget_log_entries(self) -> int:
        if not self._config.log_entries:
            return 0
        # What is checkpointed in the network log must be shown to have only grown: entries after it are needed.
        most = await self._ledger.checkpointed(self._context.address)
        first, count = min(self._peer_log.size - self._config.log_entries, most), 0
        while gone := await self._peer_log.prune(first):
            count += gone
            await trio.sleep(PAUSE_S)
        return count
