"""The catalogue: which records and envelopes are here, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from nsllm.cache_dht import placement
from nsllm.cache_dht.placement import Shard
from nsllm.cache_dht.sealed_store import SealedStore
from nsllm.cache_dht.store import RecordStore
from nsllm.ids import Digest

EMPTY: Final = Digest(hashlib.sha256().digest())
"""Stock of a shard of which nothing is here."""


class Catalogue:
    """Of one peer's public records and of the envelopes that it holds; groups' own stores are none of it."""

    def __init__(self, records: RecordStore, envelopes: SealedStore, shards: int) -> None:
        """Nothing read yet.

        Args:
            records: public ones.
            envelopes: of groups.
            shards: of each space.
        """
        self._records = records
        self._envelopes = envelopes
        self._count = shards
        self._version: tuple[int, int] | None = None
        self._shards: dict[Digest, tuple[Shard, ...]] = {}
        """Of what is here: placement is computed once."""
        self._shelves: dict[Shard, tuple[Digest, ...]] = {}
        self._stocks: dict[Shard, Digest] = {}

    async def shelves(self) -> Mapping[Shard, tuple[Digest, ...]]:
        """Records by shard, ascending; read again if something came or went.

        Raises:
            StoreError: disk trouble.
        """
        version = (self._records.version, self._envelopes.version)
        if version == self._version:
            return self._shelves
        found: dict[Digest, tuple[Shard, ...]] = {}
        for digest, key, embedding in await self._records.catalogue():
            found[digest] = self._shards.get(digest) or (
                placement.key_shard(key, self._count),
                placement.embedding_shard(embedding, self._count),
            )
        for digest, key in await self._envelopes.catalogue():
            found.setdefault(digest, (placement.key_shard(key, self._count),))
        shelves: dict[Shard, list[Digest]] = {}
        for digest in sorted(found):
            for shard in found[digest]:
                shelves.setdefault(shard, []).append(digest)
        self._version, self._shards = version, found
        self._shelves = {shard: tuple(digests) for shard, digests in sorted(shelves.items())}
        self._stocks = {
            shard: Digest(hashlib.sha256(b"".join(digests)).digest()) for shard, digests in self._shelves.items()
        }
        return self._shelves

    def stock(self, shard: Shard) -> Digest:
        """What two peers compare: SHA-256 of the shard's records, as of the last `shelves`."""
        return self._stocks.get(shard, EMPTY)

    def has(self, record: Digest) -> bool:
        """Whether a record was here at the last `shelves`."""
        return record in self._shards
