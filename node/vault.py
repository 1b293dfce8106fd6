"""Envelopes that this peer holds for groups, its own and others': checked from outside, stored, given to who asks."""

from __future__ import annotations

from collections.abc import Callable

from nsllm.cache_dht import placement
from nsllm.cache_dht.placement import Shard
from nsllm.cache_dht.reuse import check_standing
from nsllm.cache_dht.sealed import CertifiedSealed
from nsllm.cache_dht.sealed_store import SealedStore
from nsllm.errors import PeerFault
from nsllm.ids import Digest, short
from nsllm.node.context import PeerContext


class Vault:
    """The holder's duty for envelopes. They lie by their salted key alone, since their meaning is nobody's business."""

    def __init__(
        self,
        *,
        context: PeerContext,
        store: SealedStore,
        may_hold: Callable[[Shard], bool],
        filled: Callable[[Shard], None],
    ) -> None:
        """Begin with what the store holds.

        Args:
            context: who we are.
            store: where envelopes are.
            may_hold: whether we are in line for a shard.
            filled: told of each shard that we hold something of.
        """
        self._context = context
        self._store = store
        self._may_hold = may_hold
        self._filled = filled

    async def hold(self, certified: CertifiedSealed) -> bool:
        """Store an envelope that is ours to hold; True if it is new.

        Raises:
            PeerFault: it does not hold, was revoked, or is not ours.
            StoreError: disk trouble; nothing was acknowledged.
        """
        context, record = self._context, certified.leaf.record
        check_standing(record, context.retracted_at(record))
        certified.check(context.network_id, context.validators_of(certified.certificate))
        shard = self.shard(certified.leaf.request_key)
        if not self._may_hold(shard):
            raise PeerFault(f"record {short(record)} belongs to a shard that we do not hold")
        new = await self._store.put(certified)
        if context.retracted_at(record) is not None:  # a block took it back while the disk was busy
            await self._store.erase([record])
            return False
        self._filled(shard)
        if new:
            context.events.emit("envelope_held", record=short(record))
        return new

    async def lookup(self, key: Digest) -> CertifiedSealed | None:
        """The envelope for a salted request key; never a revoked one."""
        found = await self._store.get(key)
        return found if found is not None and self._context.retracted_at(found.leaf.record) is None else None

    async def holds(self, record: Digest) -> bool:
        """Whether an envelope of this record is here."""
        return await self._store.holds(record)

    def shard(self, key: Digest) -> Shard:
        """Where a salted key lies."""
        return placement.key_shard(key, self._context.genesis.placement.shards)
