"""`/nsllm/push/1`: a certified record goes to a peer that holds its shard, which acknowledges once it is stored.

The acknowledgement means: on disk. Generators count them; validators keep a record until enough holders have it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.canonical import Value
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
from nsllm.consensus.registry import Member
from nsllm.errors import NsllmError
from nsllm.ids import DigestField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, Refused, answering, dialogue, refusal, refused_by

PUSH: Final = "/nsllm/push/1"
MAX_PUSH_BYTES: Final = MAX_CERTIFIED_BYTES + 1024
SERVE_S: Final = 30.0

Store = Callable[[CertifiedRecord, Member], Awaitable[str | None]]
"""Checks and stores a record durably: None, or why not. Storing it again is no fault."""


class Push(Value, frozen=True, kw_only=True):
    """One record for its holder."""

    record: CertifiedRecord


class Stored(Value, frozen=True, kw_only=True, tag="stored"):
    """The record is on the holder's disk."""

    record: DigestField


class PushAnswer(Value, frozen=True, kw_only=True):
    """Stored, or refused with the reason."""

    answer: Stored | Refused


@dataclass(frozen=True, slots=True)
class Acknowledgements:
    """What became of one record at its holders."""

    stored: tuple[PeerId, ...]
    failed: tuple[tuple[PeerId, str], ...]
    """Holders that refused or did not answer, with the reason."""


def serve_push(directory: PeerDirectory, store: Store) -> StreamHandler:
    """Handler for data peers."""

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_PUSH_BYTES, deadline_s=SERVE_S) as framed:
            member = directory.member_of(stream.peer)
            if member is None:
                await framed.send(PushAnswer(answer=refusal(MEMBERS_ONLY)))
                return
            push = await framed.receive(Push)
            reason = await store(push.record, member)
            digest = push.record.signed.record.digest()
            await framed.send(PushAnswer(answer=Stored(record=digest) if reason is None else refusal(reason)))

    return handler


async def push(network: Network, peer: PeerId, record: CertifiedRecord, *, deadline_s: float = 10.0) -> None:
    """Return once `peer` has stored the record.

    Raises:
        RefusedError: it will not, with its reason.
        NetworkError: no answer.
    """
    async with dialogue(network, peer, PUSH, limit_bytes=MAX_PUSH_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(Push(record=record))
        answer = (await framed.receive(PushAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, PUSH, answer)
    if answer.record != record.signed.record.digest():
        raise MisbehaviourError(f"{peer} acknowledged another record")


async def push_to_holders(
    network: Network, holders: Sequence[PeerId], record: CertifiedRecord, *, deadline_s: float = 10.0
) -> Acknowledgements:
    """Push to all `holders` at once and say who has the record; raises nothing for a holder's fault."""
    outcome: dict[PeerId, str | None] = {}

    async def one(peer: PeerId) -> None:
        try:
            await push(network, peer, record, deadline_s=deadline_s)
            outcome[peer] = None
        except NsllmError as error:
            outcome[peer] = str(error)

    async with trio.open_nursery() as nursery:
        for peer in holders:
            nursery.start_soon(one, peer)
    return Acknowledgements(
        stored=tuple(peer for peer in holders if outcome[peer] is None),
        failed=tuple((peer, reason) for peer in holders if (reason := outcome[peer]) is not None),
    )
