"""`/nsllm/removal/1`: a member signs that it has no copy of a record that validators took back, or says why not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from nsllm.cache_dht.removal import SignedRemoval
from nsllm.canonical import Value
from nsllm.ids import Digest, DigestField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, Refused, answering, dialogue, refusal, refused_by

REMOVAL: Final = "/nsllm/removal/1"
MAX_REMOVAL_BYTES: Final = 2048

Prove = Callable[[Digest], Awaitable[SignedRemoval | str]]
"""Record → our signed word that we have no copy of it, or why we do not give it."""


class RemovalRequest(Value, frozen=True, kw_only=True):
    """Which record."""

    record: DigestField


class Removed(Value, frozen=True, kw_only=True, tag="removed"):
    """The holder's word."""

    signed: SignedRemoval


class RemovalAnswer(Value, frozen=True, kw_only=True):
    """Removed, or why the holder does not say so."""

    answer: Removed | Refused


def serve_removal(directory: PeerDirectory, prove: Prove) -> StreamHandler:
    """Handler for every member."""

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_REMOVAL_BYTES) as framed:
            if directory.member_of(stream.peer) is None:
                await framed.send(RemovalAnswer(answer=refusal(MEMBERS_ONLY)))
                return
            said = await prove((await framed.receive(RemovalRequest)).record)
            await framed.send(RemovalAnswer(answer=refusal(said) if isinstance(said, str) else Removed(signed=said)))

    return handler


async def ask_removal(network: Network, peer: PeerId, record: Digest, *, deadline_s: float = 5.0) -> SignedRemoval:
    """The peer's signed word that it has no copy of the record; whoever uses it checks it.

    Raises:
        RefusedError: it does not say so, with its reason.
        NetworkError: no answer.
    """
    async with dialogue(network, peer, REMOVAL, limit_bytes=MAX_REMOVAL_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(RemovalRequest(record=record))
        answer = (await framed.receive(RemovalAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, REMOVAL, answer)
    return answer.signed
