"""A holder's care for its own shelves: it fetches the certified records of its shards that it lacks.

Generators and validators push a record to its holders when it is certified. Whoever was away then, or lost its store,
would lack it for ever: so a holder looks through the network log when it starts and through every block that is
decided, a while later, and asks the other holders for what it has not got.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final, Protocol

import trio

from nsllm.cache_dht import placement
from nsllm.cache_dht.sealed import CertifiedSealed
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.observation import ScoreLeaf, unpack_subjects
from nsllm.errors import NsllmError, PeerFault
from nsllm.governance.errors import StorageError
from nsllm.governance.ledger import Ledger
from nsllm.ids import Digest, Height, PeerId, short
from nsllm.node.context import PeerContext
from nsllm.node.federated_cache import FederatedCache, Shelves
from nsllm.node.vault import Vault

log = logging.getLogger(__name__)

LOOK_AFTER_S: Final = 45.0
"""Time that generator and keepers have to push a record."""
START_AFTER_S: Final = 5.0
"""Time to connect, after a start."""
LOOK_BACK: Final = 4096
"""Blocks that are looked through at start, the newest."""
QUEUE_LIMIT: Final = 4096
ASK_DEADLINE_S: Final = 5.0


class Envelopes(Shelves, Protocol):
    """Other peers' stores, and the envelopes that they hold for groups."""

    async def want(self, holder: PeerId, key: Digest) -> CertifiedSealed | None:
        """What `holder` has for a salted key, unverified. Raises `NetworkError`."""
        ...


class Restocker:
    """Fetches what our shelves lack."""

    def __init__(
        self,
        *,
        context: PeerContext,
        ledger: Ledger,
        store: RecordStore,
        cache: FederatedCache,
        vault: Vault,
        shelves: Envelopes,
    ) -> None:
        self._context = context
        self._ledger = ledger
        self._store = store
        self._cache = cache
        self._vault = vault
        self._shelves = shelves
        self._due: deque[tuple[float, Height]] = deque(maxlen=QUEUE_LIMIT)
        self._came = trio.Event()

    def decided(self, block: DecidedBlock) -> None:
        """A block was committed; those of its records that are ours to hold are looked for in a while."""
        keys = (subject.request_key for subject in unpack_subjects(block.block.body.subjects))
        if self._store.notice is not None or any(map(self._is_ours, keys)):
            self._due.append((trio.current_time() + LOOK_AFTER_S, block.block.header.height))
            self._came.set()

    async def run(self) -> None:
        """Look through the log, then through new blocks, until cancelled."""
        await trio.sleep(START_AFTER_S)
        top = self._ledger.height
        found = 0
        for height in range(max(1, top - LOOK_BACK + 1), top + 1):
            if self._store.crowded:  # what is lacking was evicted: to fetch it again would evict the next
                break
            found += await self._look(Height(height))
        if found:
            self._context.events.emit("restocked", records=found)
        while True:
            while not self._due:
                self._came = trio.Event()
                await self._came.wait()
            at, height = self._due.popleft()
            await trio.sleep_until(at)
            await self._look(height)

    async def _look(self, height: Height) -> int:
        """Fetch what we lack of one block; how many records that were."""
        try:
            leaves = await self._ledger.leaves(height)
        except StorageError as error:
            log.warning("restock_skipped height=%d error=%s", height, error)
            return 0
        lacking = [leaf for leaf in leaves if await self._lacks(leaf)]
        return sum([await self._fetch(leaf) for leaf in lacking])

    async def _lacks(self, leaf: ScoreLeaf) -> bool:
        if self._context.retracted_at(leaf.record) is not None:
            return False
        mine = self._is_ours(leaf.request_key)
        # The log tells a record's key, not its embedding: what we hold for its embedding only is worth asking for
        # where the whole store was lost.
        if not mine and self._store.notice is None:
            return False
        return not await self._store.holds(leaf.record) and not await self._vault.holds(leaf.record)

    def _is_ours(self, request_key: Digest) -> bool:
        """Whether placement gives us the key's shard."""
        shard = placement.key_shard(request_key, self._context.genesis.placement.shards)
        return self._context.address in self._cache.holders_of(shard)

    async def _fetch(self, leaf: ScoreLeaf) -> bool:
        shard = placement.key_shard(leaf.request_key, self._context.genesis.placement.shards)
        for holder in self._cache.holders_of(shard):
            peer = self._shelves.peer_of(holder)
            if peer is None or holder == self._context.address:
                continue
            try:
                with trio.fail_after(ASK_DEADLINE_S):
                    certified = await self._shelves.fetch(peer, leaf.request_key)
                    # The log does not tell a group's record from another.
                    sealed = await self._shelves.want(peer, leaf.request_key) if certified is None else None
                if certified is not None:
                    # Who is next in line may hold a record, but only its holders fetch it.
                    ours = self._context.address in self._cache.holders_of_record(certified)
                    return ours and await self._cache.hold(certified)
                if sealed is not None:
                    return await self._vault.hold(sealed)
            except (PeerFault, trio.TooSlowError) as error:
                log.debug("restock_passed record=%s holder=%s error=%s", short(leaf.record), peer, error)
            except NsllmError as error:
                log.info("restock_failed record=%s holder=%s error=%s", short(leaf.record), peer, error)
        return False
