"""`/nsllm/fetch/1`: certified records by request key or by meaning, one frame each, then the end frame.

Strangers may fetch what is public, within rates by peer and in total. The client checks that it got what it asked for;
whoever uses a record checks its certificate (`CertifiedRecord.check`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final, assert_never

import trio
from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
from nsllm.ids import Digest, DigestField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, answering, dialogue, refusal, refused_by
from nsllm.p2p.rates import Rate, RateLimiter
from nsllm.record import EMBEDDING_DIMENSIONS

FETCH: Final = "/nsllm/fetch/1"
MAX_KEYS: Final = 16
MAX_NEAR: Final = 8
MAX_FETCH_BYTES: Final = MAX_CERTIFIED_BYTES + 1024
STRANGERS: Final = Rate(per_peer=60, total=600)
"""Keys a minute."""
SERVE_S: Final = 30.0

Lookup = Callable[[Digest, bool], Awaitable[CertifiedRecord | None]]
"""(request key, whether the asker is a member) → the record, if it is held and the asker may see it."""
Near = Callable[[bytes, int, bool], Awaitable[Sequence[CertifiedRecord]]]
"""(embedding, how many, whether the asker is a member) → the nearest records that are held and the asker may see."""


class ByKeys(Value, frozen=True, kw_only=True, tag="by_keys"):
    """Records that answer exactly these requests."""

    keys: Annotated[tuple[DigestField, ...], Meta(min_length=1, max_length=MAX_KEYS)]

    @property
    def cost(self) -> int:
        """What it counts against the asker's rate."""
        return len(self.keys)


class ByMeaning(Value, frozen=True, kw_only=True, tag="by_meaning"):
    """Records whose question is near an embedding, the nearest first."""

    embedding: Annotated[bytes, Meta(min_length=EMBEDDING_DIMENSIONS, max_length=EMBEDDING_DIMENSIONS)]
    count: Annotated[int, Meta(ge=1, le=MAX_NEAR)]

    @property
    def cost(self) -> int:
        """What it counts against the asker's rate."""
        return self.count


class FetchRequest(Value, frozen=True, kw_only=True):
    """What is looked for; further kinds of query join the union."""

    query: ByKeys | ByMeaning


class Found(Value, frozen=True, kw_only=True, tag="found"):
    """One record."""

    record: CertifiedRecord


class FetchAnswer(Value, frozen=True, kw_only=True):
    """A record, or the refusal that ends the answer."""

    answer: Found | Refused


def serve_fetch(
    directory: PeerDirectory,
    lookup: Lookup,
    near: Near,
    *,
    strangers: Rate = STRANGERS,
    pad_s: Callable[[], float] = lambda: 0.0,
) -> StreamHandler:
    """Handler for data peers and validators.

    Args:
        directory: who is a member.
        lookup: what is given by key.
        near: what is given by meaning.
        strangers: how much they may ask.
        pad_s: strangers are answered at multiples of this time after their request, so that how long a look-up took
            tells them nothing; 0: at once.
    """
    limiter = RateLimiter(strangers)

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_FETCH_BYTES, deadline_s=SERVE_S) as framed:
            request = await framed.receive(FetchRequest)
            began_s = trio.current_time()
            member = directory.member_of(stream.peer) is not None
            if not member and not limiter.take(stream.peer, request.query.cost):
                await framed.send(FetchAnswer(answer=refusal(TOO_MUCH)))
                return
            match request.query:
                case ByKeys(keys=keys):
                    looked_up = [await lookup(key, member) for key in keys]
                    found = [record for record in looked_up if record is not None]
                case ByMeaning(embedding=embedding, count=count):
                    found = list(await near(embedding, count, member))
                case _:
                    assert_never(request.query)
            if not member and (step_s := pad_s()) > 0:
                steps = math.ceil((trio.current_time() - began_s) / step_s)
                await trio.sleep_until(began_s + max(1, steps) * step_s)
            for record in found:
                await framed.send(FetchAnswer(answer=Found(record=record)))
            await framed.send_end()

    return handler


async def fetch(
    network: Network, peer: PeerId, keys: Sequence[Digest], *, deadline_s: float = 5.0
) -> tuple[CertifiedRecord, ...]:
    """The records that `peer` holds of at most `MAX_KEYS` request keys; certificates are not checked here.

    Raises:
        NetworkError: no answer, or a refusal.
        MisbehaviourError: a record that was not asked for.
    """
    wanted = dict.fromkeys(keys)
    found: list[CertifiedRecord] = []
    async with dialogue(network, peer, FETCH, limit_bytes=MAX_FETCH_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(FetchRequest(query=ByKeys(keys=tuple(wanted))))
        while (frame := await framed.receive_or_end(FetchAnswer)) is not None:
            if isinstance(frame.answer, Refused):
                raise refused_by(peer, FETCH, frame.answer)
            key = frame.answer.record.signed.record.key()
            if key not in wanted:
                raise MisbehaviourError(f"{peer} sent a record that was not asked for, or one twice")
            del wanted[key]
            found.append(frame.answer.record)
    return tuple(found)


async def fetch_near(
    network: Network, peer: PeerId, embedding: bytes, count: int, *, deadline_s: float = 5.0
) -> tuple[CertifiedRecord, ...]:
    """At most `count` records of `peer` near an embedding; neither nearness nor certificates are checked here.

    Raises:
        NetworkError: no answer, or a refusal.
        MisbehaviourError: more than were asked for.
    """
    found: list[CertifiedRecord] = []
    async with dialogue(network, peer, FETCH, limit_bytes=MAX_FETCH_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(FetchRequest(query=ByMeaning(embedding=embedding, count=count)))
        while (frame := await framed.receive_or_end(FetchAnswer)) is not None:
            if isinstance(frame.answer, Refused):
                raise refused_by(peer, FETCH, frame.answer)
            if len(found) == count:
                raise MisbehaviourError(f"{peer} sent more than {count} near records")
            found.append(frame.answer.record)
    return tuple(found)
