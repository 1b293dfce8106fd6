"""Retrieval: chunks near a question, found here and at the holders of its shards, checked, fitted into the prompt.

A chunk from another peer is used only if a member signed it and its embedding is that of its text. A question that is
not public is answered from this peer's own store: nothing of it goes out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from nsllm.cache_dht import placement
from nsllm.cache_dht.document_store import DocumentStore, NearChunk
from nsllm.cache_dht.index import cosine
from nsllm.embedding import quantize_embedding
from nsllm.errors import NsllmError, PeerFault
from nsllm.ids import Digest, PeerId, hex0x, short
from nsllm.node.config import DocumentsConfig
from nsllm.node.context import PeerContext
from nsllm.node.document_spreader import ChunkLinks
from nsllm.node.documents import Documents
from nsllm.node.engine.port import Engine, EngineRequest, ModelInfo
from nsllm.node.errors import InvalidRequestError
from nsllm.node.federated_cache import FederatedCache
from nsllm.passages import framed, with_passages
from nsllm.record import Request, SignedChunk

log = logging.getLogger(__name__)

LEAST_COSINE: Final = 0.35
"""Between question and chunk. Of 500 questions of BoolQ 0.6 % are farther than this from the passage that answers them;
half have another passage as near among 500."""
MOST: Final = 8
"""Passages of one answer."""
PASSAGES: Final = 3
"""Where a request says `true` and the peer's setting says none."""
PROBES: Final = 8
ASK_PEERS: Final = 8
"""Holders that one retrieval asks, all at the same time."""
ASK_DEADLINE_S: Final = 0.8
SPARE: Final = 2
"""Times as many chunks are looked at as are wanted: some do not verify, overlap, or do not fit."""
CHARS_A_TOKEN: Final = 3
"""Where no tokenizer is at hand (an upstream's model): English has four, so this errs towards fewer passages."""
ANSWER_TOKENS: Final = 256
"""Room that is left for an answer whose length nobody said."""


@dataclass(slots=True)
class RetrievalCounters:
    """What was found, since the peer started."""

    asked: int = 0
    """Questions that passages were looked for."""
    found: int = 0
    """Of these, questions that got some."""
    refused: int = 0
    """Chunks that holders gave us and that did not verify."""


class Retrieval:
    """Finds what a question's answer may cite."""

    def __init__(
        self,
        *,
        context: PeerContext,
        store: DocumentStore,
        documents: Documents,
        engine: Engine,
        cache: FederatedCache,
        links: ChunkLinks,
        settings: DocumentsConfig,
    ) -> None:
        self._context = context
        self._store = store
        self._documents = documents
        self._engine = engine
        self._cache = cache
        self._links = links
        self._settings = settings
        self.counters = RetrievalCounters()

    def wanted(self, asked: bool | int | None) -> int:
        """How many passages a request that says `retrieve` so is to get."""
        if asked is None:
            return self._settings.retrieve
        if asked is True:
            return self._settings.retrieve or PASSAGES
        return int(asked)

    async def cited(
        self, request: Request, embedding: Sequence[float], count: int, model: ModelInfo, *, local: bool
    ) -> tuple[Request, tuple[SignedChunk, ...]]:
        """The request with passages before its question, and the chunks that they are; unchanged if there are none.

        Args:
            request: without passages.
            embedding: of its question.
            count: at most so many, from 1 to `MOST`.
            model: that will answer.
            local: ask no other peer.

        Raises:
            InvalidRequestError: the model's template takes no system message.
            EngineError: the worker died.
        """
        self.counters.asked += 1
        quantized = quantize_embedding(list(embedding))
        near = await self._near(quantized, count, local=local)
        chosen = await self._fitted(request, _apart(near)[:count], model)
        if not chosen:
            return request, ()
        self.counters.found += 1
        self._context.events.emit(
            "passages_found", count=len(chosen), documents=len({c.chunk.document for c in chosen})
        )
        return with_evidence(request, chosen), chosen

    async def _near(self, embedding: bytes, count: int, *, local: bool) -> list[SignedChunk]:
        """Verified chunks, the nearest by the full embedding first; equally near ones by digest: all peers agree."""
        try:
            mine = await self._store.near(embedding, SPARE * count, least=LEAST_COSINE)
        except NsllmError as error:
            log.error("documents_unreadable error=%s", error)
            mine = ()
        here = {found.signed.chunk.digest(): found for found in mine}
        others: dict[Digest, NearChunk] = {} if local else await self._elsewhere(embedding, SPARE * count)
        fresh = {digest: found for digest, found in others.items() if digest not in here}
        ranked = sorted({**fresh, **here}.items(), key=lambda item: (-item[1].cosine, item[0]))[: SPARE * count]
        doubtful = [found for digest, found in ranked if digest in fresh]
        refused = await self._refused(doubtful)
        return [found.signed for digest, found in ranked if digest not in refused]

    async def _elsewhere(self, embedding: bytes, count: int) -> dict[Digest, NearChunk]:
        gathered: dict[Digest, NearChunk] = {}

        async def ask(peer: PeerId) -> None:
            try:
                with trio.fail_after(ASK_DEADLINE_S):
                    found = await self._links.find_passages(peer, embedding, count)
                for signed in found:
                    near = cosine(embedding, signed.chunk.embedding)
                    if near >= LEAST_COSINE:
                        self._documents.check(signed)
                        gathered[signed.chunk.digest()] = NearChunk(signed, near)
            except PeerFault as error:
                self._refuse(peer, error)
            except (NsllmError, trio.TooSlowError) as error:
                log.info("passages_failed peer=%s error=%s", peer, error)

        async with trio.open_nursery() as nursery:
            for peer in await self._holders(embedding):
                nursery.start_soon(ask, peer)
        withdrawn = await self._store.withdrawals(
            (found.signed.chunk.member, found.signed.chunk.document) for found in gathered.values()
        )
        return {
            digest: found
            for digest, found in gathered.items()
            if not any(one.withdrawal.covers(found.signed.chunk) for one in withdrawn)
        }

    async def _holders(self, embedding: bytes) -> tuple[PeerId, ...]:
        """Whom to ask: one holder of each likely shard that is not held here, each peer once."""
        chosen: dict[PeerId, None] = {}
        for shard in placement.near_passage_shards(embedding, self._context.genesis.placement.shards, PROBES):
            if self._context.address in self._cache.holders_of(shard):
                continue
            try:
                holders = await self._cache.peers_of(shard)
            except NsllmError as error:
                log.info("holders_unknown error=%s", error)
                continue
            if not any(peer in chosen for peer in holders) and holders:
                chosen[holders[0]] = None
        return tuple(chosen)[:ASK_PEERS]

    async def _refused(self, doubtful: Sequence[NearChunk]) -> frozenset[Digest]:
        """Those whose embedding is not that of their text, or could not be computed."""
        if not doubtful:
            return frozenset()
        try:
            await self._documents.check_embeddings([found.signed for found in doubtful])
        except PeerFault:
            pass
        else:
            return frozenset()
        bad: set[Digest] = set()
        for found in doubtful:
            try:
                await self._documents.check_embeddings([found.signed])
            except PeerFault as error:
                bad.add(found.signed.chunk.digest())
                self._refuse(None, error, found.signed)
        return frozenset(bad)

    def _refuse(self, holder: PeerId | None, error: NsllmError, signed: SignedChunk | None = None) -> None:
        self.counters.refused += 1
        self._context.events.emit(
            "chunk_refused",
            chunk=short(signed.chunk.digest()) if signed is not None else None,
            member=hex0x(signed.chunk.member) if signed is not None else None,
            holder=holder,
            reason=error.message,
        )

    async def _fitted(
        self, request: Request, ranked: Sequence[SignedChunk], model: ModelInfo
    ) -> tuple[SignedChunk, ...]:
        """The nearest chunks, as many as the budget and the model's context have room for."""
        if not ranked:
            return ()
        try:
            plain = len(await self._engine.tokenize(EngineRequest.of(request), special=True))
        except InvalidRequestError:  # no tokenizer here, or a conversation that generating will refuse as well
            fits = self._settings.passage_tokens * CHARS_A_TOKEN
            counts = range(len(ranked), 0, -1)
            return tuple(ranked[: next((n for n in counts if len(framed(ranked[:n])) <= fits), 0)])
        room = self._settings.passage_tokens
        if model.context_tokens is not None:
            answer = request.sampling.max_tokens or ANSWER_TOKENS
            room = min(room, model.context_tokens - plain - answer)
        for count in range(len(ranked), 0, -1):
            with_them = EngineRequest.of(with_evidence(request, ranked[:count]))
            try:
                tokens = len(await self._engine.tokenize(with_them, special=True))
            except InvalidRequestError as error:
                raise InvalidRequestError(
                    f"the model {request.model!r} takes no passages: {error.message}",
                    hint="leave `retrieve` out, or ask a model whose template has a system message",
                    param="retrieve",
                ) from None
            if tokens - plain <= room:
                return tuple(ranked[:count])
        return ()


def with_evidence(request: Request, evidence: Sequence[SignedChunk]) -> Request:
    """The request with passages in it; its key is another one.

    Raises:
        InvalidRequestError: its system message would be too long.
    """
    try:
        messages = with_passages(request.messages, evidence)
    except ValueError as error:
        raise InvalidRequestError(f"no room for passages: {error}", param="retrieve") from None
    return msgspec.structs.replace(request, messages=messages)


def _apart(ranked: Sequence[SignedChunk]) -> list[SignedChunk]:
    """Without what says the same again: equal texts, and stretches of a document that overlap a nearer one."""
    kept: list[SignedChunk] = []
    for signed in ranked:
        one = signed.chunk
        again = any(
            other.chunk.text == one.text
            or (other.chunk.document == one.document and other.chunk.start < one.end and one.start < other.chunk.end)
            for other in kept
        )
        if not again:
            kept.append(signed)
    return kept
