"""The federated cache as one peer sees it: look-ups, cheapest first, and its duty as a holder of shards.

A look-up never trusts what it finds: every record is checked (request, generator's signature, certificate, policy)
before it is served, whether it comes from our own disk or from another peer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Protocol

import trio

from nsllm.cache_dht import placement
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.guards import has_expired, same_but_question
from nsllm.cache_dht.index import cosine
from nsllm.cache_dht.placement import Shard
from nsllm.cache_dht.reuse import LEAST_COSINE, NEIGHBOURS, check_found, check_standing
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError, PeerFault
from nsllm.governance.errors import PolicyError
from nsllm.ids import Address, Digest, PeerId, Ppm, hex0x, short
from nsllm.node.context import PeerContext
from nsllm.node.holders import Holders
from nsllm.p2p.network import Network
from nsllm.record import Request

log = logging.getLogger(__name__)

ASK: Final = 3
"""Holders that one look-up asks; the first valid answer wins."""
PATIENCE_S: Final = 0.05
"""How long one holder may take before the next one is asked as well: most round trips are shorter, and to ask two costs
more than twice, because who is late is hung up on. A holder that has nothing is not waited for."""
ASK_DEADLINE_S: Final = 0.8
PROBES: Final = 2
"""Shards of the embedding space that one look-up by meaning asks."""
PROVIDE_S: Final = 30.0
PROVIDE_AGAIN_S: Final = 12 * 3600.0
"""Provider records live 24 hours in Kademlia: half of that leaves time for a repetition that fails."""
PROVIDE_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Found:
    """A verified record that may be served."""

    certified: CertifiedRecord
    score_ppm: Ppm
    """Hybrid score under the policy in force."""
    holder: PeerId | None
    """Who gave it to us; None: our own store."""


@dataclass(frozen=True, slots=True)
class Near:
    """A record of a request that differs from ours in its question only, unverified."""

    certified: CertifiedRecord
    holder: PeerId | None
    """Who gave it to us; None: our own store."""
    cosine: float
    """Of the two questions' embeddings."""


@dataclass(slots=True)
class CacheCounters:
    """What the look-ups found, since the peer started."""

    hits_local: int = 0
    hits_remote: int = 0
    hits_semantic: int = 0
    """Answers to like questions that were served, from here or from elsewhere."""
    misses: int = 0
    refused: int = 0
    """Records that holders gave us and that did not verify."""


class Shelves(Protocol):
    """Other peers' stores, over the fetch and push protocols."""

    async def fetch(self, holder: PeerId, key: Digest) -> CertifiedRecord | None:
        """What `holder` has for `key`, unverified. Raises `NetworkError`."""
        ...

    async def fetch_near(self, holder: PeerId, embedding: bytes, count: int) -> Sequence[CertifiedRecord]:
        """What `holder` has near an embedding, unverified. Raises `NetworkError`."""
        ...

    async def push(self, holder: PeerId, certified: CertifiedRecord) -> None:
        """Return once `holder` has the record on disk. Raises `RefusedError` or another `NetworkError`."""
        ...

    def peer_of(self, member: Address) -> PeerId | None:
        """Present libp2p identity of a member."""
        ...


class FederatedCache:
    """Look-ups in our own store and in the holders' stores; keeps and announces the shards that we hold."""

    CIRCLE: ClassVar[Literal["group", "public"]] = "public"
    """Visibility of the records that have their place here."""

    def __init__(self, *, context: PeerContext, store: RecordStore, network: Network, shelves: Shelves) -> None:
        self._context = context
        self._store = store
        self._network = network
        self._shelves = shelves
        self._placement = context.genesis.placement
        self._shards: dict[Shard, float] = {}
        """Shards that we hold records of, and when each is to be announced (again), in trio's seconds."""
        self.holders = Holders(context, network, shelves.peer_of)
        self._filled = trio.Event()
        self.counters = CacheCounters()
        store.ours = self._ours

    def _ours(self, request_key: Digest, embedding: bytes) -> bool:
        """Whether placement gives us a record, by the members of today."""
        count = self._placement.shards
        both = (placement.key_shard(request_key, count), placement.embedding_shard(embedding, count))
        return any(self._context.address in self.holders_of(shard) for shard in both)

    async def local(self, key: Digest) -> Found | None:
        """Exact match in our own store; trouble with the disk costs the hit, not the answer."""
        try:
            certified = await self._store.get(key)
        except StoreError as error:
            log.error("store_unreadable error=%s", error)
            return None
        if certified is None:
            return None
        found = self._checked(certified, key, None)
        if found is not None:
            self.counters.hits_local += 1
            self._context.events.emit("cache_hit", where="local", record=short(certified.leaf.record))
        return found

    async def remote(self, key: Digest) -> Found | None:
        """Exact match at the holders of the key's shard: one round trip. The DHT is asked if none of them answers."""
        shard = placement.key_shard(key, self._placement.shards)
        named = self.holders.to_ask(shard)[:ASK]
        found, answers = await self._asked_for(key, named)
        if not answers:
            others = [peer for peer in await self._announced(shard) if peer not in named]
            found, _ = await self._asked_for(key, others[:ASK])
        if found is None:
            self.counters.misses += 1
        else:
            self.counters.hits_remote += 1
            self._context.events.emit(
                "cache_hit", where="remote", record=short(found.certified.leaf.record), holder=found.holder
            )
        return found

    async def _asked_for(self, key: Digest, holders: Sequence[PeerId]) -> tuple[Found | None, int]:
        """The first valid answer, and how many holders answered. Each has `PATIENCE_S` before the next is asked too."""
        winner: Found | None = None
        answers = 0

        async def ask(holder: PeerId, over: trio.Event) -> None:
            nonlocal winner, answers
            with trio.move_on_after(ASK_DEADLINE_S):
                try:
                    certified = await self._shelves.fetch(holder, key)
                except PeerFault as error:
                    self._refuse(None, holder, error)
                except NsllmError as error:
                    log.info("fetch_failed peer=%s error=%s", holder, error)
                else:
                    answers += 1
                    found = self._checked(certified, key, holder) if certified is not None else None
                    if found is not None and winner is None:
                        winner = found
                        nursery.cancel_scope.cancel()
            over.set()

        async with trio.open_nursery() as nursery:
            for holder in holders:
                over = trio.Event()
                nursery.start_soon(ask, holder, over)
                with trio.move_on_after(PATIENCE_S):
                    await over.wait()
        return winner, answers

    async def _announced(self, shard: Shard) -> tuple[PeerId, ...]:
        """Who announced a shard in the DHT; nobody if it does not answer."""
        try:
            return await self.holders.announced(shard)
        except NsllmError as error:
            log.info("holders_unknown error=%s", error)
            return ()

    def reaches_peers(self) -> bool:
        """Whether a remote look-up has anyone to ask."""
        return bool(self._network.connected())

    async def near(self, request: Request, embedding: bytes) -> tuple[Near, ...]:
        """Records of our own store that answer questions like this one's; see `verified`."""
        try:
            found = await self._store.near(embedding, NEIGHBOURS, least=LEAST_COSINE)
        except StoreError as error:
            log.error("store_unreadable error=%s", error)
            return ()
        return self._comparable([certified for certified, _ in found], request, embedding, None)

    async def remote_near(self, request: Request, embedding: bytes) -> tuple[Near, ...]:
        """The same from a holder of the embedding's cell, and one of the cell across the nearest plane."""
        gathered: list[Near] = []
        asked: set[PeerId] = set()

        async def answered(holders: Sequence[PeerId]) -> bool:
            """Ask one after the other until one answers; False if none does. Nobody is asked for two shards."""
            silent = not holders
            for holder in holders[:ASK]:
                if holder in asked:
                    continue
                asked.add(holder)
                try:
                    with trio.fail_after(ASK_DEADLINE_S):
                        found = await self._shelves.fetch_near(holder, embedding, NEIGHBOURS)
                except PeerFault as error:
                    self._refuse(None, holder, error)
                except (NsllmError, trio.TooSlowError) as error:
                    log.info("near_failed peer=%s error=%s", holder, error)
                else:
                    gathered.extend(self._comparable(found, request, embedding, holder))
                    return True
                silent = True
            return not silent

        async def ask(shard: Shard) -> None:
            if not await answered(self.holders.to_ask(shard)):
                await answered(await self._announced(shard))

        async with trio.open_nursery() as nursery:
            for shard in placement.near_shards(embedding, self._placement.shards, PROBES):
                nursery.start_soon(ask, shard)
        return tuple({near.certified.leaf.record: near for near in gathered}.values())

    def verified(self, near: Near) -> Found | None:
        """The record as it may be served; None, and counted, if it does not verify."""
        return self._checked(near.certified, near.certified.leaf.request_key, near.holder)

    async def served(self, found: Found) -> None:
        """An answer to a like question was served from our own store: there is demand for it there."""
        if found.holder is None:
            try:
                await self._store.served(found.certified.leaf.record)
            except StoreError as error:
                log.error("store_unreadable error=%s", error)

    async def hold(self, certified: CertifiedRecord, *, check_placement: bool = True) -> bool:
        """Store a record that is ours to hold, and announce its shards; True if it is new.

        Args:
            certified: untrusted.
            check_placement: refuse records of shards that we are not in line for.

        Raises:
            PeerFault: the record does not verify, or is not ours to hold.
            StoreError: disk trouble, or no room; nothing was acknowledged.
        """
        record = certified.signed.record
        key = certified.leaf.request_key
        if record.visibility != self.CIRCLE:
            raise PeerFault(f"a {record.visibility} record where {self.CIRCLE} ones are held")
        check_standing(certified.leaf.record, self._context.retracted_at(certified.leaf.record))
        certified.check(self._context.network_id, self._context.validators_of(certified.certificate))
        shards = placement.shards_of(record, key, self._placement.shards)
        mine = [shard for shard in shards if self._context.address in self.holders_of(shard)]
        if check_placement and not any(self.holders.in_line(shard) for shard in shards):
            raise PeerFault(f"record {short(certified.leaf.record)} belongs to shards that we do not hold")
        return await self._shelve(certified, mine)

    async def bring(self, certified: CertifiedRecord) -> bool:
        """Store a record that the operator brings, whoever's shard it is in; True if it is new.

        Raises:
            PeerFault, PolicyError: it may not be served here.
            StoreError: disk trouble, or no room; nothing was acknowledged.
        """
        self._check(certified, certified.signed.record.key())
        shards = placement.shards_of(certified.signed.record, certified.leaf.request_key, self._placement.shards)
        return await self._shelve(certified, [s for s in shards if self._context.address in self.holders_of(s)])

    async def _shelve(self, certified: CertifiedRecord, mine: Sequence[Shard]) -> bool:
        """Store a verified record, and announce the shards that are ours; True if it is new."""
        new = await self._store.put(certified, certified.leaf.request_key, self._hybrid(certified))
        if not self._stands(certified):  # a block took it back while the disk was busy
            await self._store.erase([certified.leaf.record])
            return False
        self._fill(mine)
        if new:
            self._context.events.emit("record_held", record=short(certified.leaf.record), shards=len(mine))
        return new

    async def lookup(self, key: Digest, *, member: bool) -> CertifiedRecord | None:
        """What we give to a peer that asks; strangers see public records only."""
        found = await self._store.get(key, public_only=not member)
        return found if found is not None and self._stands(found) else None

    async def lookup_near(self, embedding: bytes, count: int, *, member: bool) -> tuple[CertifiedRecord, ...]:
        """What we give to a peer that asks by meaning; strangers see public records only."""
        found = await self._store.near(embedding, count, least=LEAST_COSINE, public_only=not member)
        return tuple(certified for certified, _ in found if self._stands(certified))

    def _stands(self, certified: CertifiedRecord) -> bool:
        """Whether validators have not taken the record back; one that they have is about to be deleted."""
        return self._context.retracted_at(certified.leaf.record) is None

    async def announce(self) -> None:
        """Provider records for the shards that we hold, as they fill, and again before they expire; until cancelled."""
        self._fill(await self._stored_shards())
        while True:
            now = trio.current_time()
            for shard in [shard for shard, due in self._shards.items() if due <= now]:
                pause_s = PROVIDE_AGAIN_S if await self._provide(shard) else PROVIDE_RETRY_S
                self._shards[shard] = trio.current_time() + pause_s
            self._filled = trio.Event()
            with trio.move_on_at(min(self._shards.values(), default=math.inf)):
                await self._filled.wait()

    async def _provide(self, shard: Shard) -> bool:
        try:
            with trio.fail_after(PROVIDE_S):
                await self._network.provide(shard.provider_key(self._context.network_id))
        except (NsllmError, trio.TooSlowError) as error:
            log.warning("announce_failed shard=%s/%d error=%s", shard.space, shard.number, error)
            return False
        self._context.events.emit("shard_announced", space=shard.space, number=shard.number)
        return True

    def announce_shard(self, shard: Shard) -> None:
        """Something of this shard is here: it is announced, if it is news."""
        self._fill([shard])

    def _fill(self, shards: Iterable[Shard]) -> None:
        """Records of these shards are here; those that are news will be announced."""
        for shard in shards:
            if shard not in self._shards:
                self._shards[shard] = trio.current_time()
                self._filled.set()

    def keep_announced(self, shards: Iterable[Shard]) -> None:
        """Announce shards of document chunks as well, from now on."""
        self._fill(shards)

    async def peers_of(self, shard: Shard) -> tuple[PeerId, ...]:
        """Who to ask for what is in a shard, the best first."""
        named = self.holders.to_ask(shard)
        connected = self._network.connected()
        if any(peer in connected for peer in named):
            return named
        return tuple(dict.fromkeys([*named, *await self._announced(shard)]))

    def holders_of(self, shard: Shard) -> tuple[Address, ...]:
        """Members that placement gives the shard to."""
        return self.holders.named(shard)

    def holders_of_record(self, certified: CertifiedRecord) -> tuple[Address, ...]:
        """Members that hold a record: those of its key shard, then those of its embedding shard, each once."""
        shards = placement.shards_of(certified.signed.record, certified.leaf.request_key, self._placement.shards)
        return tuple(dict.fromkeys(address for shard in shards for address in self.holders_of(shard)))

    def shards_announced(self) -> int:
        """Shards that we hold records of and have announced, or are about to."""
        return len(self._shards)

    async def _stored_shards(self) -> tuple[Shard, ...]:
        shards: set[Shard] = set()
        try:
            for digest in await self._store.digests():
                certified = await self._store.by_digest(digest)
                if certified is not None:
                    record, key = certified.signed.record, certified.leaf.request_key
                    both = placement.shards_of(record, key, self._placement.shards)
                    shards.update(shard for shard in both if self._context.address in self.holders_of(shard))
        except StoreError as error:
            log.error("store_unreadable error=%s", error)
        return tuple(sorted(shards))

    def _comparable(
        self, found: Sequence[CertifiedRecord], request: Request, embedding: bytes, holder: PeerId | None
    ) -> tuple[Near, ...]:
        """Those that answer a request that differs in its question only, and are near."""
        near: list[Near] = []
        for certified in found:
            record = certified.signed.record
            close = cosine(embedding, record.embedding)
            if close >= LEAST_COSINE and same_but_question(request, record.request):
                near.append(Near(certified, holder, close))
        return tuple(near)

    def _checked(self, certified: CertifiedRecord, key: Digest, holder: PeerId | None) -> Found | None:
        try:
            found = Found(certified, self._check(certified, key), holder)
            return (
                None
                if has_expired(certified.signed.record.request, certified.age_ms(self._context.clock.now_ms()))
                else found
            )
        except (PeerFault, PolicyError) as error:
            self._refuse(certified, holder, error)
            return None

    def _check(self, certified: CertifiedRecord, key: Digest) -> Ppm:
        """The hybrid score of a record that may be served for `key`. Raises `PeerFault`, `PolicyError`."""
        context, visibility = self._context, certified.signed.record.visibility
        if visibility != self.CIRCLE:
            raise PeerFault(f"a {visibility} record where {self.CIRCLE} ones are looked for")
        hybrid = self._hybrid(certified)
        validators = context.validators_of(certified.certificate)
        retracted = context.retracted_at(certified.leaf.record)
        check_found(certified, key, context.network_id, validators, hybrid, context.policy.reuse_min_ppm, retracted)
        return hybrid

    def _refuse(self, certified: CertifiedRecord | None, holder: PeerId | None, error: NsllmError) -> None:
        """Count what a holder (None: our own store) gave us and we will not serve; None: it was not even a record."""
        self.counters.refused += 1
        self._context.events.emit(
            "record_refused",
            record=short(certified.leaf.record) if certified is not None else None,
            holder=holder,
            generator=hex0x(certified.signed.record.generator) if certified is not None else None,
            reason=error.message,
        )

    def _hybrid(self, certified: CertifiedRecord) -> Ppm:
        return self._context.policy.hybrid_ppm(certified.leaf)
