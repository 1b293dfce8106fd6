"""`/nsllm/embeddings/1`: shared embeddings by key from a holder, or to it.

One request, one answer. Only members give; strangers may ask, within rates by peer and in total. Whoever uses an
embedding checks its member's signature, and computes some of them again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final, assert_never

from msgspec import Meta

from nsllm.cache_dht.embedded import MAX_EMBEDDED_BYTES, SignedEmbedded
from nsllm.canonical import Value
from nsllm.consensus.registry import Member
from nsllm.ids import CountField, Digest, DigestField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, TOO_MUCH, Refused, answering, dialogue, refusal, refused_by
from nsllm.p2p.rates import Rate, RateLimiter

EMBEDDINGS: Final = "/nsllm/embeddings/1"
MAX_AT_ONCE: Final = 64
MAX_EMBEDDINGS_BYTES: Final = MAX_AT_ONCE * MAX_EMBEDDED_BYTES + 1024
STRANGERS: Final = Rate(per_peer=240, total=2400)
"""Keys a minute."""

Look = Callable[[Sequence[Digest]], Awaitable[Sequence[SignedEmbedded]]]
"""Keys to the embeddings that are held."""
Keep = Callable[[Sequence[SignedEmbedded], Member], Awaitable[str | None]]
"""Checks and keeps what a member computed: None, or why not."""


class Wanted(Value, frozen=True, kw_only=True, tag="wanted"):
    """Give me what you have of these."""

    keys: Annotated[tuple[DigestField, ...], Meta(min_length=1, max_length=MAX_AT_ONCE)]


class Given(Value, frozen=True, kw_only=True, tag="given"):
    """Embeddings: an answer, or something to keep."""

    embeddings: Annotated[tuple[SignedEmbedded, ...], Meta(max_length=MAX_AT_ONCE)]


class Kept(Value, frozen=True, kw_only=True, tag="kept"):
    """They are kept, as long as there is room."""

    count: CountField


class EmbeddingsRequest(Value, frozen=True, kw_only=True):
    """What is asked."""

    query: Wanted | Given


class EmbeddingsAnswer(Value, frozen=True, kw_only=True):
    """What is answered."""

    answer: Given | Kept | Refused


def serve_embeddings(directory: PeerDirectory, look: Look, keep: Keep) -> StreamHandler:
    """Handler for data peers."""
    limiter = RateLimiter(STRANGERS)

    async def answer(stream: Stream, query: Wanted | Given) -> Given | Kept | Refused:
        member = directory.member_of(stream.peer)
        match query:
            case Wanted(keys=keys):
                if member is None and not limiter.take(stream.peer, len(keys)):
                    return refusal(TOO_MUCH)
                return Given(embeddings=tuple(await look(keys)))
            case Given(embeddings=embeddings):
                if member is None:
                    return refusal(MEMBERS_ONLY)
                reason = await keep(embeddings, member)
                return Kept(count=len(embeddings)) if reason is None else refusal(reason)
            case _:
                assert_never(query)

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_EMBEDDINGS_BYTES) as framed:
            request = await framed.receive(EmbeddingsRequest)
            await framed.send(EmbeddingsAnswer(answer=await answer(stream, request.query)))

    return handler


async def want_embeddings(
    network: Network, peer: PeerId, keys: Sequence[Digest], *, deadline_s: float = 5.0
) -> tuple[SignedEmbedded, ...]:
    """What `peer` has of at most `MAX_AT_ONCE` keys; neither signatures nor vectors are checked here.

    Raises:
        NetworkError: no answer, or a refusal.
        MisbehaviourError: what was not asked for.
    """
    async with dialogue(network, peer, EMBEDDINGS, limit_bytes=MAX_EMBEDDINGS_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(EmbeddingsRequest(query=Wanted(keys=tuple(keys))))
        answer = (await framed.receive(EmbeddingsAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, EMBEDDINGS, answer)
    if isinstance(answer, Kept) or len(answer.embeddings) > len(keys):
        raise MisbehaviourError(f"{peer} answered {len(keys)} keys with something else")
    found = {one.embedded.key() for one in answer.embeddings}
    if len(found) < len(answer.embeddings) or not found <= set(keys):
        raise MisbehaviourError(f"{peer} sent an embedding that was not asked for, or one twice")
    return answer.embeddings


async def give_embeddings(
    network: Network, peer: PeerId, embeddings: Sequence[SignedEmbedded], *, deadline_s: float = 10.0
) -> None:
    """Return once `peer` keeps at most `MAX_AT_ONCE` embeddings of our own.

    Raises:
        RefusedError: it will not, with its reason.
        NetworkError: no answer.
    """
    async with dialogue(network, peer, EMBEDDINGS, limit_bytes=MAX_EMBEDDINGS_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(EmbeddingsRequest(query=Given(embeddings=tuple(embeddings))))
        answer = (await framed.receive(EmbeddingsAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, EMBEDDINGS, answer)
    if not isinstance(answer, Kept):
        raise MisbehaviourError(f"{peer} answered embeddings with something else")
