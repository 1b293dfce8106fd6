"""The follower: decided blocks for a peer that does not validate. Fetch, verify, commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.errors import DivergenceError
from nsllm.consensus.events import BlockCommitted, ConsensusEvent, Halted, PeerBlamed
from nsllm.consensus.ports import Application, BlockSource, SnapshotSource
from nsllm.consensus.sync import SYNC_BATCH, Tip, check_decided, fetch_batch, load_tip, tip_of
from nsllm.errors import PeerFault
from nsllm.ids import Address, Height, NetworkId

LOGGER = logging.getLogger(__name__)

POLL_S: Final = 10.0
"""Announcements get lost; so often the source is asked anyway."""
RETRY_S: Final = 1.0
"""Pause after a fetch that brought nothing although more was announced; at least, see `patience`."""
HASTE: Final = 3
"""Such a pause is this part of what patience says."""
MAX_MISSES: Final = 5
"""Fetches in a row that an announcement which brings nothing is worth."""
FETCH_S: Final = 10.0


class Follower:
    """Keeps one application at the network's height.

    Args:
        network: its blocks.
        application: what the blocks are committed to; this task is its only committer. It says whose certificates
            count at each height.
        source: where blocks come from, unverified.
        observer: told of every committed block and every bad one.
        me: the member that follows; once it is a validator, `run` returns.
        patience: seconds to wait after an announcement, asked for each. In a large network followers that fetched
            every block at once would ask before their neighbours have it; what is decided meanwhile comes along.
        snapshots: how to come far without every block; None: block by block only.
    """

    def __init__(
        self,
        *,
        network: NetworkId,
        application: Application,
        source: BlockSource,
        observer: Callable[[ConsensusEvent], None],
        me: Address,
        patience: Callable[[], float] = lambda: 0.0,
        snapshots: SnapshotSource | None = None,
    ) -> None:
        self._snapshots = snapshots
        self._patience = patience
        self._network = network
        self._me = me
        self._application = application
        self._source = source
        self._observer = observer
        self._announced = Height(0)
        self._wake = trio.Event()

    def announce(self, height: Height) -> None:
        """Somebody says that `height` is decided. Unproved, so it only makes us ask sooner."""
        if height > self._announced:
            self._announced = height
            self._wake.set()

    async def _ahead(self, tip: Tip) -> Tip:
        """The tip, or where a snapshot brings us if others are said to be far ahead of it."""
        if self._snapshots is not None and await self._snapshots.leap(tip.height, self._announced):
            return await load_tip(self._network, self._application)
        return tip

    async def run(self) -> None:
        """Follow until cancelled, or until we are a validator ourselves.

        Raises:
            DivergenceError: our state differs from what a quorum certified.
        """
        tip = await load_tip(self._network, self._application)
        misses = 0
        while self._me not in self._application.validators:
            self._wake = trio.Event()
            announced = self._announced
            tip = await self._ahead(tip)
            blocks = await fetch_batch(self._source, tip, FETCH_S)
            before = tip
            tip, others_left = await self._take(tip, blocks)
            if self._me in self._application.validators:
                return
            if others_left:
                continue
            if tip.height > before.height:
                misses = 0
                if len(blocks) >= SYNC_BATCH:
                    continue  # there is more
                if tip.height < announced:
                    await trio.sleep(self._patience())  # whoever gave these gave what it had
                    continue
            if announced > tip.height and misses < MAX_MISSES:
                misses += 1
                await trio.sleep(max(RETRY_S, self._patience() / HASTE))
                continue
            # nothing is missing, or the claim was false: forget it
            misses = 0
            self._announced = tip.height
            with trio.move_on_after(POLL_S):
                await self._wake.wait()
                await trio.sleep(self._patience())

    async def _take(self, tip: Tip, blocks: Sequence[DecidedBlock]) -> tuple[Tip, bool]:
        """Commit blocks as far as they hold: the new tip, and whether one did not and others can be asked at once."""
        for decided in blocks:
            try:
                check_decided(self._network, self._application.validators, tip, decided)
            except PeerFault as error:
                LOGGER.warning("event=sync_refused height=%d code=%s", tip.next(), error.code)
                self._observer(PeerBlamed(None, error.code, str(error)))
                return tip, self._source.refuse()
            try:
                await self._application.commit(decided)
            except DivergenceError as error:
                self._observer(Halted(tip.next(), str(error)))
                raise
            tip = tip_of(decided)
            self._observer(BlockCommitted(decided, synced=True))
            if self._me in self._application.validators:
                break
        return tip, False
