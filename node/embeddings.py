"""Embeddings: of questions, remembered; and of `/v1/embeddings`, shared between peers where the caller says `public`.

A shared embedding is its member's word. An asker that has the text can compute it again, and does so with some of
them: all of the first ones of a member, then one in a few. Who was caught is believed no more.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import trio

from nsllm.cache_dht import placement
from nsllm.cache_dht.embedded import (
    Embedded,
    SignedEmbedded,
    embedding_key,
    packed,
    sign_embedded,
    text_digest,
    unpacked,
)
from nsllm.cache_dht.embedding_store import EmbeddingStore
from nsllm.consensus.registry import Member
from nsllm.errors import NsllmError, OwnFault, PeerFault
from nsllm.ids import Address, Digest, PeerId, hex0x
from nsllm.node.context import PeerContext
from nsllm.node.engine.port import Engine, Readable
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.service import Vectors
from nsllm.node.supervision import lone_failure
from nsllm.p2p.protocols.embeddings import MAX_AT_ONCE
from nsllm.record import Visibility

log = logging.getLogger(__name__)

R = TypeVar("R")

REMEMBERED: Final = 1024
"""Questions whose embedding is remembered, 12 kB each."""
SAME_COSINE: Final = 0.99
"""Between a vector as stated and as computed here; other kernels and numbers differ by some 0.001."""
KNOWN: Final = 8
"""Embeddings of a member that were right when they were computed again; until then every one is."""
AGAIN: Final = 1 / 16
"""Share that is computed again from then on."""
AT_ONCE: Final = 8
"""Texts of one request that wait for the engine: each on its own, since a shared one tells its tokens."""
ASK_DEADLINE_S: Final = 0.8
GIVE_DEADLINE_S: Final = 10.0
WAITING: Final = 64
"""Answers whose embeddings wait to be brought to their holders; of more, none are."""


class EmbeddingLinks(Protocol):
    """Other members' embeddings, over the embeddings protocol."""

    async def want_embeddings(self, holder: PeerId, keys: Sequence[Digest]) -> Sequence[SignedEmbedded]:
        """What `holder` has of these keys, unverified. Raises `NetworkError`."""
        ...

    async def give_embeddings(self, holder: PeerId, embeddings: Sequence[SignedEmbedded]) -> None:
        """Return once `holder` keeps them. Raises `NetworkError`."""
        ...

    def peer_of(self, member: Address) -> PeerId | None:
        """Present libp2p identity of a member."""
        ...


@dataclass(slots=True)
class EmbeddingCounters:
    """Since the peer started."""

    shared_hits: int = 0
    """Vectors that were not computed here when they were asked for."""
    computed_again: int = 0
    refused: int = 0


class Embeddings:
    """Embeddings of one peer.

    Args:
        context: of this peer.
        engine: computes them.
        store: of those that are shared.
        cache: knows who holds what.
        links: to other holders.
        connected: peers that are reachable now.
        default_visibility: of requests that name none.
    """

    def __init__(
        self,
        *,
        context: PeerContext,
        engine: Engine,
        store: EmbeddingStore,
        cache: FederatedCache,
        links: EmbeddingLinks,
        connected: Callable[[], Sequence[PeerId]],
        default_visibility: Visibility,
    ) -> None:
        self._context = context
        self._engine = engine
        self._store = store
        self._cache = cache
        self._links = links
        self._connected = connected
        self._default_visibility = default_visibility
        self._remembered: OrderedDict[Digest, tuple[float, ...]] = OrderedDict()
        self._right: Counter[Address] = Counter()
        self._liars: set[Address] = set()
        self._give, self._to_give = trio.open_memory_channel[Sequence[SignedEmbedded]](WAITING)
        self.counters = EmbeddingCounters()

    async def question(self, text: str) -> tuple[float, ...]:
        """Unit vector of a question; in this process only.

        Raises:
            EngineError, OverloadedError: it cannot be computed now.
        """
        key = self._key(text)
        vector = self._remembered.pop(key, None)
        if vector is None:
            (vector,) = await self._engine.embed([text])
        self._remembered[key] = vector
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return vector

    async def texts(
        self, texts: Sequence[Readable], visibility: Visibility | None, *, most_tokens: int | None = None
    ) -> Vectors:
        """Unit vectors of texts; those of `public` ones come from whoever computed them first.

        What is shared is known by its text: token ids, and texts that are read in part, are embedded here alone.

        Raises:
            EngineError, OverloadedError: they cannot be computed now.
            InvalidRequestError: an id is none of the encoder's tokens'.
        """
        plain = [text for text in texts if isinstance(text, str)]
        whole = len(plain) == len(texts) and most_tokens is None
        if (visibility or self._default_visibility) != "public" or not whole:
            vectors, tokens = await self._engine.embed_counted(texts, most_tokens=most_tokens)
            return Vectors(tuple(vectors), tokens, "private", 0)
        keys = {self._key(text): text for text in plain}
        found = await self._found(keys)
        lacking = [key for key in keys if key not in found]
        made = await self._computed([keys[key] for key in lacking])
        self.counters.shared_hits += len(found)
        every = {**found, **{one.embedded.key(): one for one in made}}
        rows = [every[self._key(text)].embedded for text in plain]
        return Vectors(
            tuple(unpacked(row.vector) for row in rows), sum(row.tokens for row in rows), "public", len(found)
        )

    async def look(self, keys: Sequence[Digest]) -> tuple[SignedEmbedded, ...]:
        """What we give to a peer that asks. Raises `StoreError`."""
        return tuple(one for one in (await self._store.get(keys)).values() if self._believed(one))

    async def keep(self, embeddings: Sequence[SignedEmbedded], member: Member) -> str | None:
        """Keep what a member computed, if it is ours to hold: None, or why not."""
        try:
            for one in embeddings:
                self._check(one)
                if one.embedded.member != member.address or not self._believed(one):
                    raise PeerFault(f"computed by {hex0x(one.embedded.member)}, brought by {hex0x(member.address)}")
                if self._context.address not in self._holders(one.embedded.key()):
                    raise PeerFault("an embedding of a shard that we do not hold")
            await self._store.put(embeddings)
        except NsllmError as error:
            log.info("embeddings_refused from=%s error=%s", hex0x(member.address), error)
            return "cannot keep them now" if isinstance(error, OwnFault) else error.message
        return None

    async def run(self) -> None:
        """Bring what was computed here to its holders, until cancelled; what cannot be brought stays here alone."""
        async for made in self._to_give:
            for holder, rows in self._by_holder({one.embedded.key(): one for one in made}).items():
                try:
                    with trio.fail_after(GIVE_DEADLINE_S):
                        await self._links.give_embeddings(holder, list(rows.values()))
                except (NsllmError, trio.TooSlowError) as error:
                    log.info("embeddings_not_given peer=%s error=%s", holder, error)

    async def _found(self, keys: Mapping[Digest, str]) -> dict[Digest, SignedEmbedded]:
        """What is here, and what other holders have and is believed."""
        here: dict[Digest, SignedEmbedded] = {}
        try:
            here = {key: one for key, one in (await self._store.get(list(keys))).items() if self._believed(one)}
        except NsllmError as error:
            log.error("embeddings_unreadable error=%s", error)
        theirs = [one for one in here.values() if one.embedded.member != self._context.address]
        lacking = {key: key for key in keys if key not in here}

        async def ask(holder: PeerId, wanted: Sequence[Digest]) -> None:
            try:
                with trio.fail_after(ASK_DEADLINE_S):
                    given = await self._links.want_embeddings(holder, wanted)
                for one in given:
                    self._check(one)
                theirs.extend(one for one in given if self._believed(one))
            except PeerFault as error:
                self._refuse(None, holder, error.message)
            except (NsllmError, trio.TooSlowError) as error:
                log.info("embeddings_not_got peer=%s error=%s", holder, error)

        async with trio.open_nursery() as nursery:
            for holder, wanted in self._by_holder(lacking, first=True).items():
                nursery.start_soon(ask, holder, list(wanted))
        right = await self._sampled({one.embedded.key(): one for one in theirs}, keys)
        if fetched := [one for key, one in right.items() if key not in here]:
            await self._stored(fetched)
        own = {key: one for key, one in here.items() if one.embedded.member == self._context.address}
        return own | right

    async def _sampled(
        self, theirs: Mapping[Digest, SignedEmbedded], texts: Mapping[Digest, str]
    ) -> dict[Digest, SignedEmbedded]:
        """Others' embeddings, some of them computed again; none of a member of whom one was wrong."""
        again = [
            one
            for one in theirs.values()
            if self._right[one.embedded.member] < KNOWN or self._context.rng.random() < AGAIN
        ]
        if again:
            vectors = await self._engine.embed([texts[one.embedded.key()] for one in again])
            self.counters.computed_again += len(again)
            for one, vector in zip(again, vectors, strict=True):
                member = one.embedded.member
                close = sum(a * b for a, b in zip(vector, unpacked(one.embedded.vector), strict=True))
                if close >= SAME_COSINE:
                    self._right[member] += 1
                else:
                    self._liars.add(member)
                    self._refuse(member, None, f"an embedding at cosine {close:.3f} of its text's")
        return {key: one for key, one in theirs.items() if self._believed(one)}

    async def _computed(self, texts: Sequence[str]) -> tuple[SignedEmbedded, ...]:
        """Embeddings that nobody had, signed; they go to their holders soon."""
        context, encoder = self._context, self._engine.info().encoder.digest
        made: list[SignedEmbedded] = []
        turns = trio.CapacityLimiter(AT_ONCE)

        async def compute(text: str) -> None:
            async with turns:
                (vector,), tokens = await self._engine.embed_counted([text])
            embedded = Embedded(
                network=context.network_id,
                member=context.address,
                encoder=encoder,
                text=text_digest(context.network_id, text),
                vector=packed(vector),
                tokens=tokens,
                created_ms=context.clock.now_ms(),
            )
            made.append(sign_embedded(context.key, embedded))

        try:
            async with trio.open_nursery() as nursery:
                for text in texts:
                    nursery.start_soon(compute, text)
        except BaseExceptionGroup as group:
            failure = lone_failure(group)
            if failure is None:
                raise
            raise failure from None
        if made and context.registry.get(context.address) is not None:
            await self._stored(made)
            try:
                self._give.send_nowait(made)
            except trio.WouldBlock:
                log.info("embeddings_not_given reason=busy count=%d", len(made))
        return tuple(made)

    async def _stored(self, embeddings: Sequence[SignedEmbedded]) -> None:
        try:
            await self._store.put(embeddings)
        except NsllmError as error:  # they are computed again the next time
            log.error("embeddings_not_stored error=%s", error)

    def _by_holder(self, rows: Mapping[Digest, R], *, first: bool = False) -> dict[PeerId, dict[Digest, R]]:
        """Connected holders but ourselves, with what each should have; `first`: one holder a row, the heaviest."""
        connected = set(self._connected())
        found: dict[PeerId, dict[Digest, R]] = {}
        for key, row in rows.items():
            peers = [self._links.peer_of(holder) for holder in self._holders(key) if holder != self._context.address]
            for peer in [peer for peer in peers if peer is not None and peer in connected][: 1 if first else None]:
                found.setdefault(peer, {})[key] = row
        return {peer: dict(list(of.items())[:MAX_AT_ONCE]) for peer, of in found.items()}

    def _holders(self, key: Digest) -> tuple[Address, ...]:
        return self._cache.holders_of(placement.key_shard(key, self._context.genesis.placement.shards))

    def _key(self, text: str) -> Digest:
        network = self._context.network_id
        return embedding_key(network, self._engine.info().encoder.digest, text_digest(network, text))

    def _check(self, one: SignedEmbedded) -> None:
        """Pass silently if a present member signed it. Raises `PeerFault`."""
        one.check(self._context.network_id)
        if self._context.registry.get(one.embedded.member) is None:
            raise PeerFault(f"embedding of {hex0x(one.embedded.member)}, who is no member")

    def _believed(self, one: SignedEmbedded) -> bool:
        return one.embedded.member not in self._liars

    def _refuse(self, member: Address | None, holder: PeerId | None, reason: str) -> None:
        self.counters.refused += 1
        self._context.events.emit(
            "embedding_refused", member=None if member is None else hex0x(member), holder=holder, reason=reason
        )
