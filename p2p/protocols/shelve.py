"""`/nsllm/shelve/1`: document chunks go to a holder of their shards: digests first, then only what it lacks.

The holder says what it wants and what was withdrawn; the chunks that it wants follow; its last word means that they are
on its disk. Withdrawals go the same way, and need no chunks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from msgspec import Meta

from nsllm.cache_dht.withdrawal import SignedWithdrawal
from nsllm.canonical import Value
from nsllm.consensus.registry import Member
from nsllm.ids import AddressField, Digest, DigestField, PeerId, TimeMsField
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, Refused, answering, dialogue, refusal, refused_by
from nsllm.record import MAX_CHUNK_BYTES, SignedChunk

SHELVE: Final = "/nsllm/shelve/1"
MAX_OFFERED: Final = 32
"""Chunks of one dialogue: the holder computes their embeddings, some 10 ms each."""
MAX_WITHDRAWALS: Final = 32
MAX_SHELVE_BYTES: Final = MAX_OFFERED * MAX_CHUNK_BYTES + 1024
SERVE_S: Final = 60.0


class Offered(Value, frozen=True, kw_only=True):
    """One chunk, before it is sent."""

    digest: DigestField
    member: AddressField
    document: DigestField
    created_ms: TimeMsField


class Offer(Value, frozen=True, kw_only=True):
    """What the sender has for this holder."""

    chunks: Annotated[tuple[Offered, ...], Meta(max_length=MAX_OFFERED)] = ()
    withdrawals: Annotated[tuple[SignedWithdrawal, ...], Meta(max_length=MAX_WITHDRAWALS)] = ()


class Wanted(Value, frozen=True, kw_only=True, tag="wanted"):
    """What the holder lacks of it, and what it knows to be withdrawn."""

    digests: Annotated[tuple[DigestField, ...], Meta(max_length=MAX_OFFERED)] = ()
    withdrawals: Annotated[tuple[SignedWithdrawal, ...], Meta(max_length=MAX_WITHDRAWALS)] = ()


class Chunks(Value, frozen=True, kw_only=True):
    """What was wanted, in the order in which it was."""

    chunks: Annotated[tuple[SignedChunk, ...], Meta(max_length=MAX_OFFERED)]


class Shelved(Value, frozen=True, kw_only=True, tag="shelved"):
    """The chunks are on the holder's disk."""


class ShelveAnswer(Value, frozen=True, kw_only=True):
    """What the holder says at each step."""

    answer: Wanted | Shelved | Refused


class Shelf(Protocol):
    """The holder's side, as `serve_shelve` uses it."""

    async def offered(self, offer: Offer) -> Wanted:
        """Take the withdrawals, and say what is lacking of the chunks."""
        ...

    async def shelve(self, chunks: Sequence[SignedChunk], member: Member) -> str | None:
        """Check and store chunks durably: None, or why not. Storing them again is no fault."""
        ...


@dataclass(frozen=True, slots=True)
class Shelving:
    """What became of an offer."""

    sent: int
    """Chunks that the holder lacked, and has now."""
    withdrawals: tuple[SignedWithdrawal, ...]
    """What the holder knows to be withdrawn, unverified."""


def serve_shelve(directory: PeerDirectory, shelf: Shelf) -> StreamHandler:
    """Handler for data peers."""

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_SHELVE_BYTES, deadline_s=SERVE_S) as framed:
            member = directory.member_of(stream.peer)
            if member is None:
                await framed.send(ShelveAnswer(answer=refusal(MEMBERS_ONLY)))
                return
            wanted = await shelf.offered(await framed.receive(Offer))
            await framed.send(ShelveAnswer(answer=wanted))
            if not wanted.digests:
                return
            sent = (await framed.receive(Chunks)).chunks
            if tuple(signed.chunk.digest() for signed in sent) != wanted.digests:
                raise MisbehaviourError(f"{stream.peer} sent other chunks than it was asked for")
            reason = await shelf.shelve(sent, member)
            await framed.send(ShelveAnswer(answer=Shelved() if reason is None else refusal(reason)))

    return handler


Load = Callable[[Sequence[Digest]], Awaitable[Sequence[SignedChunk]]]
"""Chunks by digest; those that are gone by now are left out."""


async def shelve(
    network: Network,
    peer: PeerId,
    offered: Mapping[Digest, Offered],
    load: Load,
    withdrawals: Sequence[SignedWithdrawal] = (),
    *,
    deadline_s: float = SERVE_S,
) -> Shelving:
    """Return once `peer` has all of the chunks, but those that it knows to be withdrawn.

    Raises:
        RefusedError: it will not, with its reason.
        NetworkError: no answer, or chunks that it wanted are gone here by now.
        MisbehaviourError: it wants what was not offered.
    """
    async with dialogue(network, peer, SHELVE, limit_bytes=MAX_SHELVE_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(Offer(chunks=tuple(offered.values()), withdrawals=tuple(withdrawals)))
        wanted = (await framed.receive(ShelveAnswer)).answer
        if isinstance(wanted, Refused):
            raise refused_by(peer, SHELVE, wanted)
        if isinstance(wanted, Shelved) or not set(wanted.digests) <= offered.keys():
            raise MisbehaviourError(f"{peer} asked for chunks that it was not offered")
        if not wanted.digests:
            return Shelving(0, wanted.withdrawals)
        await framed.send(Chunks(chunks=tuple(await load(wanted.digests))))
        answer = (await framed.receive(ShelveAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, SHELVE, answer)
    if isinstance(answer, Wanted):
        raise MisbehaviourError(f"{peer} answered chunks with a wish")
    return Shelving(len(wanted.digests), wanted.withdrawals)
