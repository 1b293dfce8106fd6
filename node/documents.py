"""Documents of this peer: taken in, held for others, withdrawn.

A chunk is public. It lies at its member and at the holders that placement names for its embedding
(`nsllm.node.document_spreader` brings it there). Nothing is stored unverified: member, signature, and the embedding,
which is computed again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from nsllm.cache_dht import placement
from nsllm.cache_dht.document_store import DocumentRow, DocumentStore
from nsllm.cache_dht.index import cosine
from nsllm.cache_dht.placement import Shard
from nsllm.cache_dht.withdrawal import SignedWithdrawal, Withdrawal, sign_withdrawal
from nsllm.consensus.registry import Member
from nsllm.embedding import quantize_embedding
from nsllm.errors import NsllmError, OwnFault, PeerFault
from nsllm.ids import Digest, TimeMs, hex0x, short
from nsllm.node.context import PeerContext
from nsllm.node.engine.port import Engine
from nsllm.node.errors import NotFoundError, NotReadyError
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.service import Piece, TakenIn
from nsllm.p2p.protocols.shelve import MAX_WITHDRAWALS, Offer, Wanted
from nsllm.record import Chunk, SignedChunk, sign_chunk

log = logging.getLogger(__name__)

SAME_COSINE: Final = 0.99
"""Between an embedding as stated and as computed here. Quantizing costs 0.0001; other kernels and numbers a little."""


class Documents:
    """Takes documents in, and holds others' chunks."""

    def __init__(self, *, context: PeerContext, store: DocumentStore, engine: Engine, cache: FederatedCache) -> None:
        self._context = context
        self._store = store
        self._engine = engine
        self._cache = cache
        self.changed: Callable[[], None] = lambda: None
        """Called when there is something new to bring to holders; whoever brings it sets it."""
        store.ours = lambda embedding: self.is_ours(self.shard(embedding))

    async def take_in(self, document: Digest, source: str, pieces: Sequence[Piece]) -> TakenIn:
        """Embed, sign and store pieces of a document, those that are not here yet; they are shared soon after.

        Args:
            document: SHA-256 of the file.
            source: its name.
            pieces: any of its chunks; the same again add nothing.

        Raises:
            NotReadyError: this peer is no member (yet): nobody would take its chunks.
            EngineError, StoreError: trouble of our own; the same pieces may be sent again.
        """
        context = self._context
        if context.registry.get(context.address) is None:
            raise NotReadyError("this peer is no member of its network yet", hint="wait until it is admitted")
        known_as, known = await self._store.numbers(context.address, document)
        fresh = [piece for piece in pieces if piece.number not in known]
        source = known_as or source
        if fresh:
            vectors = await self._engine.embed([piece.text for piece in fresh])
            now_ms = context.clock.now_ms()
            chunks = [
                self._signed(document, source, piece, quantize_embedding(vector), now_ms)
                for piece, vector in zip(fresh, vectors, strict=True)
            ]
            added = await self._store.put(chunks)
            self._arrived(chunks)
            context.events.emit("document_taken_in", document=short(document), chunks=added)
        return TakenIn(len(fresh), len(pieces) - len(fresh), source)

    def _signed(self, document: Digest, source: str, piece: Piece, embedding: bytes, now_ms: TimeMs) -> SignedChunk:
        context = self._context
        chunk = Chunk(
            network=context.network_id,
            member=context.address,
            document=document,
            source=source,
            number=piece.number,
            start=piece.start,
            end=piece.end,
            text=piece.text,
            encoder=self._engine.info().encoder.digest,
            embedding=embedding,
            created_ms=now_ms,
        )
        return sign_chunk(context.key, chunk)

    async def listed(self, *, everybodys: bool) -> tuple[DocumentRow, ...]:
        """Documents of this peer, or all that there are chunks of here."""
        return await self._store.documents(None if everybodys else self._context.address)

    async def remove(self, document: Digest) -> int:
        """Withdraw a document of ours, here and at its holders; how many chunks of it were here.

        Raises:
            NotFoundError: it is not ours.
            StoreError: disk trouble; nothing was removed.
        """
        context = self._context
        _, known = await self._store.numbers(context.address, document)
        if not known:
            raise NotFoundError(
                f"no document {hex0x(document)[:18]}… of this peer", hint="`nsllm documents list` names them"
            )
        withdrawal = Withdrawal(
            network=context.network_id, member=context.address, document=document, at_ms=context.clock.now_ms()
        )
        gone = await self._store.withdraw(sign_withdrawal(context.key, withdrawal))
        context.events.emit("document_withdrawn", document=short(document), chunks=gone)
        self.changed()
        return gone

    async def near(self, embedding: bytes, count: int) -> tuple[SignedChunk, ...]:
        """What we give to a peer that asks by meaning."""
        return tuple(found.signed for found in await self._store.near(embedding, count))

    async def offered(self, offer: Offer) -> Wanted:
        """Take the withdrawals of an offer, and say what is lacking of its chunks.

        Raises:
            PeerFault: a withdrawal that its member did not sign.
            StoreError: disk trouble.
        """
        for signed in offer.withdrawals:
            await self.withdraw(signed)
        lacking = await self._store.lacking([one.digest for one in offer.chunks])
        asked = [(one.member, one.document) for one in offer.chunks if one.digest in lacking]
        known = (await self._store.withdrawals(asked))[:MAX_WITHDRAWALS]
        gone = {(one.withdrawal.member, one.withdrawal.document): one.withdrawal.at_ms for one in known}
        wanted = [
            one.digest
            for one in offer.chunks
            if one.digest in lacking and one.created_ms > gone.get((one.member, one.document), -1)
        ]
        return Wanted(digests=tuple(wanted), withdrawals=known)

    async def shelve(self, chunks: Sequence[SignedChunk], member: Member) -> str | None:
        """Store chunks that are ours to hold: None, or why not."""
        try:
            for signed in chunks:
                self.check(signed)
                if not self.is_ours(self.shard(signed.chunk.embedding)):
                    raise PeerFault(f"chunk {short(signed.chunk.digest())} belongs to a shard that we do not hold")
            await self.check_embeddings(chunks)
            await self._store.put(chunks)
        except NsllmError as error:
            log.info("shelve_refused from=%s error=%s", hex0x(member.address), error)
            # our own trouble is told without its detail, which names our paths
            return "cannot store them now" if isinstance(error, OwnFault) else error.message
        self._arrived(chunks)
        self._context.events.emit("chunks_held", count=len(chunks))
        return None

    def check(self, signed: SignedChunk) -> None:
        """Pass silently if a present member signed this chunk, for our network and encoder.

        Raises:
            PeerFault: what is wrong with it.
        """
        chunk = signed.chunk
        signed.check(self._context.network_id)
        if self._context.registry.get(chunk.member) is None:
            raise PeerFault(f"chunk of {hex0x(chunk.member)}, who is no member")
        encoder = self._engine.info().encoder.digest
        if chunk.encoder != encoder:
            raise PeerFault(f"chunk embedded by {chunk.encoder.hex()[:16]}, the encoder here is {encoder.hex()[:16]}")

    async def check_embeddings(self, chunks: Sequence[SignedChunk]) -> None:
        """Pass silently if each chunk's embedding is that of its text, computed again.

        Raises:
            PeerFault: one is not.
            EngineError: they cannot be computed now.
        """
        vectors = await self._engine.embed([signed.chunk.text for signed in chunks])
        for signed, vector in zip(chunks, vectors, strict=True):
            if cosine(signed.chunk.embedding, quantize_embedding(vector)) < SAME_COSINE:
                raise PeerFault(f"the embedding of chunk {short(signed.chunk.digest())} is not that of its text")

    async def withdraw(self, signed: SignedWithdrawal) -> None:
        """Follow a member's withdrawal. Raises `PeerFault`, `StoreError`."""
        signed.check(self._context.network_id)
        one = signed.withdrawal
        if self._context.registry.get(one.member) is None:
            raise PeerFault(f"withdrawal of {hex0x(one.member)}, who is no member")
        gone = await self._store.withdraw(signed)
        if gone:
            self._context.events.emit("document_withdrawn", document=short(one.document), chunks=gone)

    def shard(self, embedding: bytes) -> Shard:
        """Where placement puts a chunk."""
        return placement.passage_shard(embedding, self._context.genesis.placement.shards)

    def is_ours(self, shard: Shard) -> bool:
        """Whether placement names us as a holder."""
        return self._context.address in self._cache.holders_of(shard)

    def _arrived(self, chunks: Sequence[SignedChunk]) -> None:
        shards = dict.fromkeys(self.shard(signed.chunk.embedding) for signed in chunks)
        self._cache.keep_announced(shard for shard in shards if self.is_ours(shard))
        self.changed()
