"""`/nsllm/snapshot/1`: the state of the ledger for peers that are far behind: what proves it, then chunk by chunk.

Nothing is believed: the receiver checks the offer's certificates against the epoch that it knows, and each chunk
against the manifest that a certified header commits to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Final, Protocol, assert_never

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.registry import MAX_RETRACTED
from nsllm.governance.retraction import RetractionProof
from nsllm.governance.snapshot import MAX_CHUNK_BYTES, MAX_CHUNKS, Handover, Offer
from nsllm.governance.snapshot_store import MAX_MANIFEST_BYTES
from nsllm.ids import CountField, Digest, DigestField, Epoch, EpochField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError, RefusedError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, answering, dialogue, refusal, refused_by
from nsllm.p2p.protocols.sync import MAX_SYNC_FRAME_BYTES
from nsllm.p2p.rates import Rate, RateLimiter

SNAPSHOT: Final = "/nsllm/snapshot/1"
MAX_FRAME_BYTES: Final = MAX_MANIFEST_BYTES + MAX_SYNC_FRAME_BYTES + 64 * 1024
"""An offer: a manifest, a block, and one more certificate."""
MAX_HANDOVERS: Final = 4096
MAX_AT_ONCE: Final = 32
"""Chunks of one answer: four megabytes."""
MAX_RETRACTIONS: Final = 256
"""Proofs of one answer; who gets as many asks again."""
STRANGERS: Final = Rate(per_peer=60, total=600)
SERVE_S: Final = 60.0
NONE_HERE: Final = "no snapshot here that can be proved"
GONE: Final = "not this snapshot, or no such chunk of it: ask for an offer again"


class SnapshotShelf(Protocol):
    """What the handler serves from; `nsllm.governance.snapshots.Snapshots` has all."""

    async def offer(self, since: int) -> tuple[Offer, tuple[Handover, ...]] | None:
        """The newest snapshot that can be proved here, and the handovers after epoch `since`."""
        ...

    async def chunk(self, digest: Digest, position: int) -> bytes | None:
        """One chunk of a snapshot."""
        ...

    async def retractions(self, start: int, count: int) -> Sequence[RetractionProof]:
        """Proofs of records that were taken back, from the `start`-th on."""
        ...


class AskOffer(Value, frozen=True, kw_only=True, tag="offer"):
    """The newest snapshot; the asker knows the validators of epoch `since`."""

    since: EpochField


class AskChunks(Value, frozen=True, kw_only=True, tag="chunks"):
    """Chunks of a snapshot from `start`."""

    snapshot: DigestField
    start: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
    count: Annotated[int, Meta(ge=1, le=MAX_AT_ONCE)]


class AskRetractions(Value, frozen=True, kw_only=True, tag="retractions"):
    """Proofs of the records that were taken back, from the `start`-th on: their certificates are each peer's own."""

    start: CountField


class SnapshotRequest(Value, frozen=True, kw_only=True):
    """What is asked."""

    query: AskOffer | AskChunks | AskRetractions


class HandedOver(Value, frozen=True, kw_only=True, tag="handover"):
    """The beginning of the next epoch."""

    handover: Handover


class Offered(Value, frozen=True, kw_only=True, tag="offered"):
    """The offer, after its handovers."""

    offer: Offer


class ChunkData(Value, frozen=True, kw_only=True, tag="chunk"):
    """The next chunk."""

    data: Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]


class Retracted(Value, frozen=True, kw_only=True, tag="retracted"):
    """The next proof."""

    proof: RetractionProof


class SnapshotAnswer(Value, frozen=True, kw_only=True):
    """One part of the answer, or the refusal that ends it."""

    answer: HandedOver | Offered | ChunkData | Retracted | Refused


def serve_snapshot(directory: PeerDirectory, shelf: SnapshotShelf, *, strangers: Rate = STRANGERS) -> StreamHandler:
    """Handler for every peer that has a ledger."""
    limiter = RateLimiter(strangers)

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_FRAME_BYTES, deadline_s=SERVE_S) as framed:
            request = await framed.receive(SnapshotRequest)
            if directory.member_of(stream.peer) is None and not limiter.take(stream.peer):
                await framed.send(SnapshotAnswer(answer=refusal(TOO_MUCH)))
                return
            async with aclosing(_answers(shelf, request.query)) as answers:
                async for answer in answers:
                    await framed.send(SnapshotAnswer(answer=answer))
                    if isinstance(answer, Refused):
                        return
            await framed.send_end()

    return handler


async def _answers(
    shelf: SnapshotShelf, query: AskOffer | AskChunks | AskRetractions
) -> AsyncGenerator[HandedOver | Offered | ChunkData | Retracted | Refused]:
    match query:
        case AskOffer(since=since):
            found = await shelf.offer(since)
            if found is None:
                yield refusal(NONE_HERE)
                return
            offer, handovers = found
            for handover in handovers:
                yield HandedOver(handover=handover)
            yield Offered(offer=offer)
        case AskChunks(snapshot=snapshot, start=start, count=count):
            for position in range(start, start + count):
                data = await shelf.chunk(snapshot, position)
                if data is None:
                    if position == start:
                        yield refusal(GONE)
                    return
                yield ChunkData(data=data)
        case AskRetractions(start=start):
            for proof in await shelf.retractions(start, MAX_RETRACTIONS):
                yield Retracted(proof=proof)
        case _:
            assert_never(query)


async def fetch_offer(
    network: Network, peer: PeerId, since: int, *, deadline_s: float = 20.0
) -> tuple[Offer, Sequence[Handover]] | None:
    """The peer's newest snapshot and the handovers to it, unchecked; None if it has none.

    Raises:
        NetworkError: no answer, or another refusal.
        MisbehaviourError: something else than an offer.
    """
    handovers: list[Handover] = []
    offer: Offer | None = None
    query = AskOffer(since=Epoch(since))
    async with dialogue(network, peer, SNAPSHOT, limit_bytes=MAX_FRAME_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(SnapshotRequest(query=query))
        while (frame := await framed.receive_or_end(SnapshotAnswer)) is not None:
            answer = frame.answer
            if isinstance(answer, Refused):
                if answer.reason == NONE_HERE:
                    return None
                raise refused_by(peer, SNAPSHOT, answer)
            if isinstance(answer, HandedOver) and offer is None and len(handovers) < MAX_HANDOVERS:
                handovers.append(answer.handover)
            elif isinstance(answer, Offered) and offer is None:
                offer = answer.offer
            else:
                raise MisbehaviourError(f"{peer} sent more or other than handovers and one offer")
    if offer is None:
        raise MisbehaviourError(f"{peer} ended its answer without an offer")
    return offer, handovers


async def fetch_chunks(
    network: Network, peer: PeerId, snapshot: Digest, start: int, count: int, *, deadline_s: float = 30.0
) -> Sequence[bytes]:
    """Consecutive chunks from `start`, unchecked; at least one, fewer than `count` if the peer stops there.

    Raises:
        RefusedError: it has not (or no longer) this snapshot.
        NetworkError: no answer.
        MisbehaviourError: something else than chunks.
    """
    chunks: list[bytes] = []
    query = AskChunks(snapshot=snapshot, start=start, count=min(count, MAX_AT_ONCE))
    async with dialogue(network, peer, SNAPSHOT, limit_bytes=MAX_FRAME_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(SnapshotRequest(query=query))
        while (frame := await framed.receive_or_end(SnapshotAnswer)) is not None:
            if isinstance(frame.answer, Refused):
                raise refused_by(peer, SNAPSHOT, frame.answer)
            if not isinstance(frame.answer, ChunkData) or len(chunks) == query.count:
                raise MisbehaviourError(f"{peer} sent more or other than {query.count} chunks")
            chunks.append(frame.answer.data)
    if not chunks:
        raise RefusedError(f"{peer} ended its answer without a chunk")
    return chunks


async def fetch_retractions(
    network: Network, peer: PeerId, start: int, *, deadline_s: float = 30.0
) -> Sequence[RetractionProof]:
    """The peer's proofs of retractions from the `start`-th on, unchecked; at most `MAX_RETRACTED` in all.

    Raises:
        NetworkError: no answer, or a refusal.
        MisbehaviourError: something else, or more than there can be.
    """
    proofs: list[RetractionProof] = []
    more = True
    while more:
        before = len(proofs)
        query = AskRetractions(start=start + before)
        async with dialogue(network, peer, SNAPSHOT, limit_bytes=MAX_FRAME_BYTES, deadline_s=deadline_s) as framed:
            await framed.send(SnapshotRequest(query=query))
            while (frame := await framed.receive_or_end(SnapshotAnswer)) is not None:
                if isinstance(frame.answer, Refused):
                    raise refused_by(peer, SNAPSHOT, frame.answer)
                if not isinstance(frame.answer, Retracted) or start + len(proofs) >= MAX_RETRACTED:
                    raise MisbehaviourError(f"{peer} sent more or other than proofs of retractions")
                proofs.append(frame.answer.proof)
        more = len(proofs) - before >= MAX_RETRACTIONS
    return proofs
