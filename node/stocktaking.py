"""Stocktaking: members in line for a shard compare what they have, and give what another one lacks.

So copies come back by themselves. A holder that is away for a while has the next in line stand in for it; one that
comes back, joins, or lost its store gets what it should have from those that have it. What goes out for all this is
bounded a second, so that answers do not wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import trio

from nsllm import canonical
from nsllm.cache_dht.placement import Shard
from nsllm.cache_dht.sealed import CertifiedSealed
from nsllm.cache_dht.sealed_store import SealedStore
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError
from nsllm.ids import Address, Digest, PeerId, hex0x
from nsllm.node.catalogue import Catalogue
from nsllm.node.context import PeerContext
from nsllm.node.federated_cache import FederatedCache
from nsllm.p2p.errors import RefusedError
from nsllm.p2p.protocols.stock import MAX_OFFERED, MAX_SHELVES, Shelf

log = logging.getLogger(__name__)

T = TypeVar("T")

START_AFTER_S: Final = 20.0
"""Time to connect, and for others to be connected."""
LOOK_S: Final = 30.0
"""Between two rounds, on average."""
AWAY_S: Final = 60.0
"""A member that has not answered for so long is away, and the next in line stands in for it."""
AWAY_AGAIN_S: Final = 300.0
"""Who is away and not connected is tried again after this long: each time costs a walk of the DHT."""
AGREED_S: Final = 600.0
"""How long who only stands in takes it that holders still have what they had."""
BYTES_PER_S: Final = 1024 * 1024
"""Records that one peer gives away for healing, at most."""


class StockLinks(Protocol):
    """What stocktaking asks of other members."""

    def peer_of(self, member: Address) -> PeerId | None:
        """Present libp2p identity of a member."""
        ...

    async def compare(self, holder: PeerId, shelves: Sequence[Shelf]) -> Sequence[Shelf]:
        """Those whose stock is another at the holder. Raises `NetworkError`."""
        ...

    async def lacking(self, holder: PeerId, records: Sequence[Digest]) -> Sequence[Digest]:
        """Those that the holder lacks. Raises `NetworkError`."""
        ...

    async def push(self, holder: PeerId, certified: CertifiedRecord) -> None:
        """Return once the holder has the record on disk. Raises `NetworkError`."""
        ...

    async def give(self, holder: PeerId, certified: CertifiedSealed) -> None:
        """Return once the holder has the envelope on disk. Raises `NetworkError`."""
        ...


class Stocktaking:
    """One peer's part in it; implements `nsllm.p2p.protocols.stock.Stock`."""

    def __init__(
        self,
        *,
        context: PeerContext,
        records: RecordStore,
        envelopes: SealedStore,
        cache: FederatedCache,
        links: StockLinks,
    ) -> None:
        self._context = context
        self._records = records
        self._envelopes = envelopes
        self._cache = cache
        self._holders = cache.holders
        self._links = links
        self._catalogue = Catalogue(records, envelopes, context.genesis.placement.shards)
        self._silent: dict[Address, float] = {}
        """Since when a member does not answer, on trio's clock."""
        self._tried: dict[Address, float] = {}
        """When a member was visited last."""
        self._agreed: dict[tuple[Address, Shard], tuple[Digest, float]] = {}
        """Our stock of a shard, all of which a member has said to have, and when."""
        self._free_s = 0.0
        """When the next record may go."""

    async def run(self) -> None:
        """Look through the shelves until cancelled."""
        await trio.sleep(START_AFTER_S * self._context.rng.uniform(0.8, 1.2))
        while True:
            try:
                await self._look()
            except NsllmError as error:
                log.error("stocktaking_failed error=%s", error)
            await trio.sleep(LOOK_S * self._context.rng.uniform(0.8, 1.2))

    async def differing(self, shelves: Sequence[Shelf]) -> tuple[int, ...]:
        """Positions of the shelves whose stock is another here."""
        await self._catalogue.shelves()
        return tuple(
            at
            for at, shelf in enumerate(shelves)
            if self._catalogue.stock(Shard(shelf.space, shelf.number)) != shelf.stock
        )

    async def lacking(self, records: Sequence[Digest]) -> tuple[Digest, ...]:
        """Those of the records that are not here, and would be taken: a full store evicted what it lacks."""
        await self._catalogue.shelves()
        if self._records.crowded:
            return ()
        return tuple(
            record
            for record in dict.fromkeys(records)
            if not self._catalogue.has(record) and self._context.retracted_at(record) is None
        )

    async def _look(self) -> None:
        """One round: visit whoever should have what is here."""
        shelves = await self._catalogue.shelves()
        due: dict[Address, list[Shard]] = {}
        own = self._context.address
        for shard in shelves:
            line = self._holders.line(shard)
            if own not in line:
                continue
            acting = self._acting(line)
            if own in acting:
                self._cache.announce_shard(shard)
            for member in dict.fromkeys((*self._holders.named(shard), *acting)):
                if member != own and (own in acting or not self._has_agreed(member, shard)):
                    due.setdefault(member, []).append(shard)
        async with trio.open_nursery() as nursery:
            for member, shards in due.items():
                if self._is_given_up(member):
                    continue
                self._tried[member] = trio.current_time()
                nursery.start_soon(self._visit, member, shards, shelves)

    def _acting(self, line: Sequence[Address]) -> tuple[Address, ...]:
        """Who holds a shard now: the first in line that are not away."""
        present = [member for member in line if not self._is_away(member)]
        return tuple(present[: self._context.genesis.placement.replication])

    def _is_away(self, member: Address) -> bool:
        return trio.current_time() - self._silent.get(member, trio.current_time()) >= AWAY_S

    def _is_given_up(self, member: Address) -> bool:
        """Whether there is no point in visiting a member now."""
        again_s = self._tried.get(member, -AWAY_AGAIN_S) + AWAY_AGAIN_S
        return self._is_away(member) and not self._holders.is_here(member) and trio.current_time() < again_s

    def _has_agreed(self, member: Address, shard: Shard) -> bool:
        stock, at_s = self._agreed.get((member, shard), (None, 0.0))
        return stock == self._catalogue.stock(shard) and trio.current_time() - at_s < AGREED_S

    async def _visit(
        self, member: Address, shards: Sequence[Shard], shelves: Mapping[Shard, tuple[Digest, ...]]
    ) -> None:
        """Compare some shards with a member, and give what it lacks of them."""
        peer = self._links.peer_of(member)
        if peer is None:
            return
        given = 0
        try:
            for some in _portions(shards, MAX_SHELVES):
                stocks = {shard: self._catalogue.stock(shard) for shard in some}
                compared = [
                    Shelf(space="key" if shard.space == "key" else "embedding", number=shard.number, stock=stock)
                    for shard, stock in stocks.items()
                ]
                for shelf in await self._links.compare(peer, compared):
                    for offered in _portions(shelves[Shard(shelf.space, shelf.number)], MAX_OFFERED):
                        for record in await self._links.lacking(peer, offered):
                            given += await self._give(peer, record)
                now_s = trio.current_time()
                self._agreed |= {(member, shard): (stock, now_s) for shard, stock in stocks.items()}
        except RefusedError as error:
            log.info("stock_refused holder=%s error=%s", peer, error)
        except NsllmError as error:
            log.info("stock_unanswered holder=%s error=%s", peer, error)
            self._silent.setdefault(member, trio.current_time())
            return
        finally:
            if given:
                self._context.events.emit("copies_given", holder=hex0x(member), records=given)
        self._silent.pop(member, None)

    async def _give(self, peer: PeerId, record: Digest) -> bool:
        """Give one record or envelope; False if it is gone from here."""
        certified = await self._records.by_digest(record)
        if certified is not None:
            await self._wait_turn(certified)
            await self._links.push(peer, certified)
            return True
        sealed = await self._envelopes.by_digest(record)
        if sealed is not None:
            await self._wait_turn(sealed)
            await self._links.give(peer, sealed)
        return sealed is not None

    async def _wait_turn(self, copy: CertifiedRecord | CertifiedSealed) -> None:
        """Return when it may go."""
        at_s = max(self._free_s, trio.current_time())
        self._free_s = at_s + len(canonical.encode(copy)) / BYTES_PER_S
        await trio.sleep_until(at_s)


def _portions(all_of_them: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (all_of_them[start : start + size] for start in range(0, len(all_of_them), size))
