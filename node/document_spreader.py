"""Brings chunks and withdrawals to the holders of their shards, and again when holders come, go or lose their store.

Whoever has a chunk looks after it: its member, and each holder. A holder is offered digests first, so that a chunk that
it has costs 60 bytes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from nsllm.cache_dht.document_store import DocumentStore, Outlined
from nsllm.cache_dht.placement import Shard
from nsllm.cache_dht.withdrawal import SignedWithdrawal
from nsllm.errors import NsllmError
from nsllm.ids import Address, Digest, PeerId, hex0x
from nsllm.node.context import PeerContext
from nsllm.node.documents import Documents
from nsllm.node.federated_cache import FederatedCache
from nsllm.p2p.errors import RefusedError
from nsllm.p2p.protocols.shelve import MAX_OFFERED, MAX_WITHDRAWALS, Load, Offered, Shelving
from nsllm.record import SignedChunk

log = logging.getLogger(__name__)

START_AFTER_S: Final = 5.0
"""Time to connect, after a start."""
GATHER_S: Final = 0.5
"""Chunks that come one after another are offered together."""
RETRY_S: Final = 30.0
AGAIN_S: Final = 1800.0
"""Holders are offered everything again after this long: one may have lost its store."""
TOLD_WITHDRAWALS: Final = 256
"""Of our own, the latest: what every data peer is told after a start."""


class ChunkLinks(Protocol):
    """Other members' documents, over the passages and shelve protocols."""

    async def find_passages(self, holder: PeerId, embedding: bytes, count: int) -> Sequence[SignedChunk]:
        """What `holder` has near an embedding, unverified. Raises `NetworkError`."""
        ...

    async def shelve(
        self, holder: PeerId, offered: Mapping[Digest, Offered], load: Load, withdrawals: Sequence[SignedWithdrawal]
    ) -> Shelving:
        """Return once `holder` has the chunks on disk. Raises `RefusedError` or another `NetworkError`."""
        ...

    def peer_of(self, member: Address) -> PeerId | None:
        """Present libp2p identity of a member."""
        ...


@dataclass(slots=True)
class _Holder:
    """What another holder has said to have, and was told."""

    has: set[Digest] = field(default_factory=set)
    told: set[Digest] = field(default_factory=set)


class DocumentSpreader:
    """Offers what is here to whoever should have it."""

    def __init__(
        self,
        *,
        context: PeerContext,
        store: DocumentStore,
        documents: Documents,
        cache: FederatedCache,
        links: ChunkLinks,
    ) -> None:
        self._context = context
        self._store = store
        self._documents = documents
        self._cache = cache
        self._links = links
        self._shards: dict[Digest, Shard] = {}
        """Of the chunks that are here: placement is computed once."""
        self._holders: dict[Address, _Holder] = {}
        self._withdrawals: tuple[SignedWithdrawal, ...] = ()
        self._members: object = None
        self._changed = trio.Event()
        documents.changed = self._poke

    async def run(self) -> None:
        """Spread until cancelled; sleeps for as long as there is nothing here."""
        outline = await self._store.outline()
        shards = dict.fromkeys(self._shard(one) for one in outline)
        self._cache.keep_announced(shard for shard in shards if self._documents.is_ours(shard))
        await trio.sleep(START_AFTER_S)
        while True:
            self._changed = trio.Event()
            complete = await self._spread()
            pause_s = AGAIN_S if complete else RETRY_S
            with trio.move_on_after(pause_s if self._shards or not complete else math.inf) as waiting:
                await self._changed.wait()
                await trio.sleep(GATHER_S)
            if waiting.cancelled_caught and complete:
                for holder in self._holders.values():
                    holder.has.clear()

    def follow(self) -> None:
        """The members may have changed: so may the holders of what is here."""
        if self._shards and self._context.registry.members() is not self._members:
            self._poke()

    def _poke(self) -> None:
        self._changed.set()

    async def _spread(self) -> bool:
        """Offer each holder what it has not said to have; True if all of them have all of it."""
        self._members = self._context.registry.members()
        try:
            outline = await self._store.outline()
            self._withdrawals = await self._store.own_withdrawals(TOLD_WITHDRAWALS)
        except NsllmError as error:
            log.error("documents_unreadable error=%s", error)
            return False
        here = {one.digest for one in outline}
        self._shards = {digest: shard for digest, shard in self._shards.items() if digest in here}
        complete = True

        async def bring(holder: Address, chunks: Sequence[Outlined]) -> None:
            nonlocal complete
            if not await self._bring(holder, chunks):
                complete = False

        async with trio.open_nursery() as nursery:
            for holder, chunks in self._due(outline).items():
                if chunks or self._news(holder):
                    nursery.start_soon(bring, holder, chunks)
        return complete

    def _due(self, outline: Sequence[Outlined]) -> dict[Address, list[Outlined]]:
        """What each other member is to be offered; those that may hold something are told of withdrawals."""
        own = self._context.address
        others = [member.address for member in self._context.registry.members() if "data" in member.roles]
        due: dict[Address, list[Outlined]] = {address: [] for address in others if address != own}
        for one in outline:
            for holder in self._cache.holders_of(self._shard(one)):
                if holder in due and one.digest not in self._holder(holder).has:
                    due[holder].append(one)
        return due

    async def _bring(self, holder: Address, chunks: Sequence[Outlined]) -> bool:
        """Everything that one holder lacks, a batch at a time; False if it is to be tried again."""
        known = self._holder(holder)
        news = self._news(holder)
        peer = self._links.peer_of(holder)
        if peer is None:
            return False
        sent = 0
        for number in range(max(-(-len(chunks) // MAX_OFFERED), -(-len(news) // MAX_WITHDRAWALS))):
            part = chunks[number * MAX_OFFERED : (number + 1) * MAX_OFFERED]
            say = news[number * MAX_WITHDRAWALS : (number + 1) * MAX_WITHDRAWALS]
            try:
                done = await self._links.shelve(peer, _offered(part), self._store.by_digests, say)
                for signed in done.withdrawals:
                    await self._documents.withdraw(signed)
            except NsllmError as error:
                log.info("shelve_failed holder=%s error=%s", hex0x(holder), error)
                if isinstance(error, RefusedError):
                    self._context.events.emit("chunks_refused", holder=hex0x(holder), reason=error.message)
                return False
            sent += done.sent
            known.has.update(one.digest for one in part)
            known.told.update(one.withdrawal.digest() for one in say)
        if sent:
            self._context.events.emit("chunks_spread", holder=hex0x(holder), count=sent)
        return True

    def _news(self, holder: Address) -> list[SignedWithdrawal]:
        """Withdrawals that a holder was not told of."""
        if not self._withdrawals:
            return []
        told = self._holder(holder).told
        return [one for one in self._withdrawals if one.withdrawal.digest() not in told]

    def _holder(self, address: Address) -> _Holder:
        return self._holders.setdefault(address, _Holder())

    def _shard(self, one: Outlined) -> Shard:
        shard = self._shards.get(one.digest)
        if shard is None:
            shard = self._shards[one.digest] = self._documents.shard(one.embedding)
        return shard


def _offered(chunks: Sequence[Outlined]) -> dict[Digest, Offered]:
    return {
        one.digest: Offered(digest=one.digest, member=one.member, document=one.document, created_ms=one.created_ms)
        for one in chunks
    }
