"""Records out of this peer's store and into it, as `nsllm cache export` and `nsllm cache import` ask for.

What comes in was anybody's file: each record is verified as one that a stranger sent, and whole databases or indexes
are never taken. A record that is refused costs itself only.
"""

from __future__ import annotations

from collections.abc import Sequence

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
from nsllm.errors import PeerFault
from nsllm.governance.errors import PolicyError
from nsllm.ids import Digest
from nsllm.node.context import PeerContext
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.service import Brought, RecordPage


class RecordTransfer:
    """Reads pages of the public store, and takes records into it."""

    def __init__(self, *, context: PeerContext, store: RecordStore, cache: FederatedCache) -> None:
        self._context = context
        self._store = store
        self._cache = cache

    async def page(self, after: Digest | None, count: int) -> RecordPage:
        """Records whose digest is above `after`; those that were revoked are left out.

        Raises:
            StoreError: disk trouble.
        """
        rows = await self._store.page(after, count)
        return RecordPage(
            network=self._context.network_id,
            records=self._store.records,
            rows=tuple(row for row in rows if self._context.retracted_at(row[0]) is None),
            last=rows[-1][0] if rows else None,
            more=len(rows) == count,
        )

    async def bring(self, bodies: Sequence[bytes]) -> tuple[Brought, ...]:
        """Verify and store certified records one by one; those that are stored are on disk when this returns.

        Raises:
            StoreError: disk trouble, or hardly any room: nothing is evicted for what is brought. What was stored before
                stays; bringing it again does no harm.
        """
        found = [await self._bring(body) for body in bodies]
        stored = sum(one.outcome == "stored" for one in found)
        if stored:
            self._context.events.emit("records_brought", count=stored)
        return tuple(found)

    async def _bring(self, body: bytes) -> Brought:
        record: Digest | None = None
        try:
            certified = canonical.decode(body, CertifiedRecord, limit_bytes=MAX_CERTIFIED_BYTES)
            record = certified.signed.record.digest()
            if await self._store.holds(record):
                return Brought(record, "known")
            if self._store.crowded:
                raise StoreError("less than an eighth of the record store is free", hint="raise cache.max_mb")
            return Brought(record, "stored" if await self._cache.bring(certified) else "known")
        except (PeerFault, PolicyError) as error:
            return Brought(record, "refused", error.message)
