"""`/nsllm/push/1`: a certified record goes to a peer that holds its shard, which acknowledges once it is stored.

The acknowledgement means: on disk. Generators count them; validators keep a record until enough holders have it. A
stream carries one record after another (`nsllm.p2p.protocols.lines`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from nsllm.canonical import Value
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
from nsllm.consensus.registry import Member
from nsllm.ids import DigestField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, Refused, refusal, refused_by
from nsllm.p2p.protocols.lines import LISTEN_S, LISTEN_TO_STRANGERS_S, Lines, questions

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


def serve_push(directory: PeerDirectory, store: Store) -> StreamHandler:
    """Handler for data peers."""

    async def answer(framed: FramedStream) -> bool:
        """Take one record; False: refused."""
        member = directory.member_of(framed.peer)
        if member is None:
            await framed.send(PushAnswer(answer=refusal(MEMBERS_ONLY)))
            return False
        push = await framed.receive(Push)
        reason = await store(push.record, member)
        digest = push.record.signed.record.digest()
        await framed.send(PushAnswer(answer=Stored(record=digest) if reason is None else refusal(reason)))
        return reason is None

    async def handler(stream: Stream) -> None:
        listen_s = LISTEN_S if directory.member_of(stream.peer) is not None else LISTEN_TO_STRANGERS_S
        async for framed in questions(stream, MAX_PUSH_BYTES, listen_s=listen_s):
            with trio.fail_after(SERVE_S):
                if not await answer(framed):
                    return

    return handler


class Pusher:
    """The giving side; keeps its lines."""

    def __init__(self, network: Network) -> None:
        self._lines = Lines(network, PUSH, MAX_PUSH_BYTES)

    async def push(self, peer: PeerId, record: CertifiedRecord, *, deadline_s: float = 10.0) -> None:
        """Return once `peer` has stored the record.

        Raises:
            RefusedError: it will not, with its reason.
            NetworkError: no answer.
            MisbehaviourError: it acknowledged another record.
        """

        async def talk(framed: FramedStream) -> None:
            await framed.send(Push(record=record))
            answer = (await framed.receive(PushAnswer)).answer
            if isinstance(answer, Refused):
                raise refused_by(peer, PUSH, answer)
            if answer.record != record.signed.record.digest():
                raise MisbehaviourError(f"{peer} acknowledged another record")

        await self._lines.ask(peer, talk, deadline_s=deadline_s)
