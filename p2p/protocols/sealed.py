"""`/nsllm/sealed/1`: a group's envelopes are offered to validators, given to holders, and looked for. Members only.

Whoever is asked need not be in the group. A validator that is opens what it is offered and scores the record inside;
one that is not says so. A holder checks what can be checked from outside, and gives an envelope to whoever knows its
salted request key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, assert_never

from nsllm.cache_dht.sealed import MAX_CERTIFIED_SEALED_BYTES, CertifiedSealed, SealedRecord
from nsllm.canonical import Value
from nsllm.consensus.registry import Member
from nsllm.ids import Address, Digest, DigestField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, Refused, answering, dialogue, refusal, refused_by
from nsllm.p2p.protocols.submit import SLOTS_PERIOD_S
from nsllm.p2p.rates import SlidingWindow

SEALED: Final = "/nsllm/sealed/1"
MAX_SEALED_FRAME_BYTES: Final = MAX_CERTIFIED_SEALED_BYTES + 1024
SERVE_S: Final = 30.0
NOT_IN_GROUP: Final = "not in the group"
"""What a validator says to an envelope that it cannot open."""

Take = Callable[[SealedRecord, Member], Awaitable[str | None]]
"""Opens an offered envelope and takes its record into the pending ones: None, or why not."""
Keep = Callable[[CertifiedSealed, Member], Awaitable[str | None]]
"""Checks and stores an envelope durably: None, or why not."""
Find = Callable[[Digest], Awaitable[CertifiedSealed | None]]
"""Salted request key → the envelope that is held."""


class Offered(Value, frozen=True, kw_only=True, tag="offered"):
    """A record to be scored; its generator sealed it."""

    envelope: SealedRecord


class Given(Value, frozen=True, kw_only=True, tag="given"):
    """An envelope to be held."""

    certified: CertifiedSealed


class Wanted(Value, frozen=True, kw_only=True, tag="wanted"):
    """The envelope for a salted request key."""

    key: DigestField


class SealedRequest(Value, frozen=True, kw_only=True):
    """One envelope's affair."""

    ask: Offered | Given | Wanted


class Taken(Value, frozen=True, kw_only=True, tag="taken"):
    """The record is pending, or the envelope is on disk."""

    record: DigestField


class Here(Value, frozen=True, kw_only=True, tag="here"):
    """What was wanted; None: it is not held."""

    certified: CertifiedSealed | None


class SealedAnswer(Value, frozen=True, kw_only=True):
    """Done, found, or refused with the reason."""

    answer: Taken | Here | Refused


def serve_sealed(directory: PeerDirectory, take: Take, keep: Keep, find: Find) -> StreamHandler:
    """Handler for validators and data peers."""
    slots: dict[Address, SlidingWindow] = {}

    async def answer(request: SealedRequest, member: Member) -> Taken | Here | Refused:
        match request.ask:
            case Offered(envelope=envelope):
                window = slots.setdefault(member.address, SlidingWindow(member.slots, SLOTS_PERIOD_S))
                if not window.take():
                    return refusal(f"more than {member.slots} records in {SLOTS_PERIOD_S:.0f} s")
                reason, record = await take(envelope, member), envelope.sealed.record
            case Given(certified=certified):
                reason, record = await keep(certified, member), certified.leaf.record
            case Wanted(key=key):
                return Here(certified=await find(key))
            case _:
                assert_never(request.ask)
        return refusal(reason) if reason is not None else Taken(record=record)

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_SEALED_FRAME_BYTES, deadline_s=SERVE_S) as framed:
            member = directory.member_of(stream.peer)
            if member is None:
                await framed.send(SealedAnswer(answer=refusal(MEMBERS_ONLY)))
                return
            await framed.send(SealedAnswer(answer=await answer(await framed.receive(SealedRequest), member)))

    return handler


async def offer(network: Network, peer: PeerId, envelope: SealedRecord, *, deadline_s: float = 10.0) -> str | None:
    """None if the validator took the record into its pending ones, else its reason.

    Raises:
        NetworkError: no answer, or one to another question.
    """
    async with _asked(network, peer, deadline_s) as framed:
        await framed.send(SealedRequest(ask=Offered(envelope=envelope)))
        answer = (await framed.receive(SealedAnswer)).answer
    if isinstance(answer, Refused):
        return answer.reason
    _same(peer, answer, envelope.sealed.record)
    return None


async def give(network: Network, peer: PeerId, certified: CertifiedSealed, *, deadline_s: float = 10.0) -> None:
    """Return once `peer` has the envelope on disk.

    Raises:
        RefusedError: it will not, with its reason.
        NetworkError: no answer, or one to another question.
    """
    async with _asked(network, peer, deadline_s) as framed:
        await framed.send(SealedRequest(ask=Given(certified=certified)))
        answer = (await framed.receive(SealedAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, SEALED, answer)
    _same(peer, answer, certified.leaf.record)


async def want(network: Network, peer: PeerId, key: Digest, *, deadline_s: float = 5.0) -> CertifiedSealed | None:
    """What `peer` holds for a salted request key, unverified.

    Raises:
        RefusedError: it will not say.
        MisbehaviourError: an envelope that was not asked for.
        NetworkError: no answer.
    """
    async with _asked(network, peer, deadline_s) as framed:
        await framed.send(SealedRequest(ask=Wanted(key=key)))
        answer = (await framed.receive(SealedAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, SEALED, answer)
    if isinstance(answer, Taken):
        raise MisbehaviourError(f"{peer} took something that it was asked for")
    if answer.certified is not None and answer.certified.envelope.sealed.request_key != key:
        raise MisbehaviourError(f"{peer} sent an envelope that was not asked for")
    return answer.certified


def _asked(network: Network, peer: PeerId, deadline_s: float) -> AbstractAsyncContextManager[FramedStream]:
    return dialogue(network, peer, SEALED, limit_bytes=MAX_SEALED_FRAME_BYTES, deadline_s=deadline_s)


def _same(peer: PeerId, answer: Taken | Here, record: Digest) -> None:
    if not isinstance(answer, Taken) or answer.record != record:
        raise MisbehaviourError(f"{peer} acknowledged another record")
