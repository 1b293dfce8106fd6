"""`/nsllm/passages/1`: document chunks near an embedding, one frame each, the nearest first, then the end frame.

Chunks are public: strangers may ask, within rates by peer and in total. Whoever uses a chunk checks its member's
signature and its embedding.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.ids import PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, answering, dialogue, refusal, refused_by
from nsllm.p2p.rates import Rate, RateLimiter
from nsllm.record import EMBEDDING_DIMENSIONS, MAX_CHUNK_BYTES, SignedChunk

PASSAGES: Final = "/nsllm/passages/1"
MAX_COUNT: Final = 32
MAX_PASSAGES_BYTES: Final = MAX_CHUNK_BYTES + 1024
STRANGERS: Final = Rate(per_peer=120, total=1200)
"""Chunks a minute."""

Near = Callable[[bytes, int], Awaitable[Sequence[SignedChunk]]]
"""(embedding, how many) → the nearest chunks that are held, nearest first."""


class PassagesRequest(Value, frozen=True, kw_only=True):
    """What is looked for."""

    embedding: Annotated[bytes, Meta(min_length=EMBEDDING_DIMENSIONS, max_length=EMBEDDING_DIMENSIONS)]
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT)]


class Passage(Value, frozen=True, kw_only=True, tag="passage"):
    """One chunk."""

    chunk: SignedChunk


class PassagesAnswer(Value, frozen=True, kw_only=True):
    """A chunk, or a refusal."""

    answer: Passage | Refused


def serve_passages(directory: PeerDirectory, near: Near) -> StreamHandler:
    """Handler for data peers."""
    limiter = RateLimiter(STRANGERS)

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_PASSAGES_BYTES) as framed:
            request = await framed.receive(PassagesRequest)
            if directory.member_of(stream.peer) is None and not limiter.take(stream.peer, request.count):
                await framed.send(PassagesAnswer(answer=refusal(TOO_MUCH)))
                return
            for signed in await near(request.embedding, request.count):
                await framed.send(PassagesAnswer(answer=Passage(chunk=signed)))
            await framed.send_end()

    return handler


async def find_passages(
    network: Network, peer: PeerId, embedding: bytes, count: int, *, deadline_s: float = 5.0
) -> tuple[SignedChunk, ...]:
    """At most `count` chunks of `peer` near an embedding; neither signatures nor nearness are checked here.

    Raises:
        NetworkError: no answer, or a refusal.
        MisbehaviourError: more than were asked for.
    """
    found: list[SignedChunk] = []
    async with dialogue(network, peer, PASSAGES, limit_bytes=MAX_PASSAGES_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(PassagesRequest(embedding=embedding, count=count))
        while (frame := await framed.receive_or_end(PassagesAnswer)) is not None:
            if isinstance(frame.answer, Refused):
                raise refused_by(peer, PASSAGES, frame.answer)
            if len(found) == count:
                raise MisbehaviourError(f"{peer} sent more than {count} chunks")
            found.append(frame.answer.chunk)
    return tuple(found)
