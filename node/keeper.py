"""A validator's care for certified records: it keeps each until its holders have it, and pushes what is missing.

The generator pushes first. Should it die before that, the validators notice: in an order that the record's digest
gives, each asks the holders in its turn and pushes what is missing, so that usually one of them does the work. A record
that no holder takes goes onto the validator's own shelf, on disk, from where stocktaking gives it on.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final

import trio

from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError
from nsllm.governance.proofs import Proofs
from nsllm.ids import Address, short
from nsllm.node.context import PeerContext
from nsllm.node.scope import Scope, ScopeOf
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)

FIRST_LOOK_S: Final = 10.0
"""Time that the generator has to push a record by itself."""
TURN_S: Final = 5.0
LOOKS: Final = 6
ASK_DEADLINE_S: Final = 5.0
KEPT_LIMIT: Final = 512
KEPT_BYTES: Final = 64 * 1024 * 1024


class Keeper:
    """Keeps certified records in memory until their holders have them."""

    def __init__(self, *, context: PeerContext, proofs: Proofs, scope_of: ScopeOf) -> None:
        self._context = context
        self._proofs = proofs
        self._scope_of = scope_of
        self._send, self._queue = trio.open_memory_channel[tuple[SignedRecord, int]](KEPT_LIMIT)
        self._kept = 0
        self._kept_bytes = 0

    def keep(self, signed: SignedRecord) -> None:
        """Take a record that a block certified; beyond the limits others must keep it."""
        size_bytes = signed.size_bytes
        if self._kept >= KEPT_LIMIT or self._kept_bytes + size_bytes > KEPT_BYTES:
            log.warning(
                "keeper_full record=%s kept=%d bytes=%d", short(signed.record.digest()), self._kept, self._kept_bytes
            )
            return
        self._kept += 1
        self._kept_bytes += size_bytes
        self._send.send_nowait((signed, size_bytes))

    def kept(self) -> int:
        """Records that are kept now."""
        return self._kept

    async def run(self) -> None:
        """Look after records until cancelled."""
        async with trio.open_nursery() as nursery:
            async for signed, size_bytes in self._queue:
                nursery.start_soon(self._keep, signed, size_bytes)

    async def _keep(self, signed: SignedRecord, size_bytes: int) -> None:
        try:
            scope = self._scope_of(signed)
            if scope is not None:
                await self._look_after(scope, await self._proofs.wait_certified(signed))
        except NsllmError as error:
            # a block has the record: only our own disk can keep us from reading its proof
            log.error("keeper_failed record=%s error=%s", short(signed.record.digest()), error)
        finally:
            self._kept -= 1
            self._kept_bytes -= size_bytes

    async def _look_after(self, scope: Scope, certified: CertifiedRecord) -> None:
        if scope.group is not None:  # whoever scored it keeps it: nobody else of the group may know what is like it
            await self._hold(scope, certified)
        await trio.sleep(FIRST_LOOK_S + TURN_S * self._turn(certified))
        missing = holders = scope.cache.holders_of_record(certified)
        shelved = False
        for look in range(LOOKS):
            if self._context.retracted_at(certified.leaf.record) is not None:
                return
            missing = tuple([holder for holder in missing if not await self._has(holder, scope, certified)])
            missing = tuple([holder for holder in missing if not await self._push(holder, scope, certified)])
            if not missing:
                return
            shelved = shelved or (len(missing) == len(holders) and await self._hold(scope, certified, ours=False))
            await trio.sleep(FIRST_LOOK_S * 2**look)
        log.warning("record_underheld record=%s holders_missing=%d", short(certified.leaf.record), len(missing))

    def _turn(self, certified: CertifiedRecord) -> int:
        """Our place in the order of validators for this record."""
        order = sorted(
            self._context.validators.members,
            key=lambda address: hashlib.sha256(certified.leaf.record + address).digest(),
        )
        return order.index(self._context.address) if self._context.is_validator else len(order)

    async def _has(self, holder: Address, scope: Scope, certified: CertifiedRecord) -> bool:
        """Whether the holder shows this very record; one that has a better answer to the same request may not."""
        if holder == self._context.address:
            return await self._hold(scope, certified)
        peer = scope.shelves.peer_of(holder)
        if peer is None:
            return False
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                found = await scope.shelves.fetch(peer, certified.leaf.request_key)
        except (NsllmError, trio.TooSlowError):
            return False
        return found is not None and found.signed == certified.signed

    async def _hold(self, scope: Scope, certified: CertifiedRecord, *, ours: bool = True) -> bool:
        """Put it onto our own shelf; not `ours`: whoever's place it has. True once it is on disk."""
        try:
            if ours:
                await scope.cache.hold(certified)
            else:
                await scope.cache.hold(certified, check_placement=False)
        except NsllmError as error:
            log.error("keeper_store_failed error=%s", error)
            return False
        return True

    async def _push(self, holder: Address, scope: Scope, certified: CertifiedRecord) -> bool:
        """True once the holder says that the record is on its disk."""
        peer = scope.shelves.peer_of(holder)
        if peer is None or holder == self._context.address:
            return False
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                await scope.shelves.push(peer, certified)
        except (NsllmError, trio.TooSlowError) as error:
            log.info("keeper_push_failed holder=%s error=%s", peer, error)
            return False
        self._context.events.emit("record_repaired", record=short(certified.leaf.record), holder=peer)
        return True
