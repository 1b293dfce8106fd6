"""A validator's care for certified records: it keeps each until its holders have it, and pushes what is missing.

The generator pushes first. Should it die before that, the validators notice: in an order that the record's digest
gives, each asks the holders in its turn and pushes what is missing, so that usually one of them does the work.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final

import trio

from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, short
from nsllm.node.context import PeerContext
from nsllm.node.federated_cache import FederatedCache, Shelves
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)

FIRST_LOOK_S: Final = 10.0
"""Time that the generator has to push a record by itself."""
TURN_S: Final = 5.0
LOOKS: Final = 6
ASK_DEADLINE_S: Final = 5.0
KEPT_LIMIT: Final = 512


class Keeper:
    """Keeps certified records in memory until their holders have them."""

    def __init__(self, *, context: PeerContext, ledger: Ledger, cache: FederatedCache, shelves: Shelves) -> None:
        self._context = context
        self._ledger = ledger
        self._cache = cache
        self._shelves = shelves
        self._send, self._queue = trio.open_memory_channel[SignedRecord](KEPT_LIMIT)
        self._kept = 0

    def keep(self, signed: SignedRecord) -> None:
        """Take a record that a block certified; beyond the limit others must keep it."""
        try:
            self._send.send_nowait(signed)
        except trio.WouldBlock:
            log.warning("keeper_full record=%s limit=%d", short(signed.record.digest()), KEPT_LIMIT)

    def kept(self) -> int:
        """Records that are kept now."""
        return self._kept

    async def run(self) -> None:
        """Look after records until cancelled."""
        async with trio.open_nursery() as nursery:
            async for signed in self._queue:
                nursery.start_soon(self._look_after, signed)

    async def _look_after(self, signed: SignedRecord) -> None:
        self._kept += 1
        try:
            certified = await self._ledger.wait_certified(signed)
            await trio.sleep(FIRST_LOOK_S + TURN_S * self._turn(certified))
            for look in range(LOOKS):
                missing = [
                    holder
                    for holder in self._cache.holders_of_record(certified)
                    if not await self._has(holder, certified)
                ]
                if not missing:
                    return
                for holder in missing:
                    await self._push(holder, certified)
                await trio.sleep(FIRST_LOOK_S * 2**look)
            log.warning("record_underheld record=%s", short(certified.leaf.record))
        finally:
            self._kept -= 1

    def _turn(self, certified: CertifiedRecord) -> int:
        """Our place in the order of validators for this record."""
        order = sorted(
            self._context.validators.members,
            key=lambda address: hashlib.sha256(certified.leaf.record + address).digest(),
        )
        return order.index(self._context.address)

    async def _has(self, holder: Address, certified: CertifiedRecord) -> bool:
        if holder == self._context.address:
            await self._cache.hold(certified)
            return True
        peer = self._shelves.peer_of(holder)
        if peer is None:
            return False
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                found = await self._shelves.fetch(peer, certified.leaf.request_key)
        except (NsllmError, trio.TooSlowError):
            return False
        return found is not None

    async def _push(self, holder: Address, certified: CertifiedRecord) -> None:
        peer = self._shelves.peer_of(holder)
        if peer is None:
            return
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                await self._shelves.push(peer, certified)
        except (NsllmError, trio.TooSlowError) as error:
            log.info("keeper_push_failed holder=%s error=%s", peer, error)
        else:
            self._context.events.emit("record_repaired", record=short(certified.leaf.record), holder=peer)
