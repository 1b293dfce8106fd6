"""`/nsllm/fetch/1`: certified records by request key or by meaning, one frame each, then the end frame.

A stream carries one request after another (`nsllm.p2p.protocols.lines`). Strangers may fetch what is public, within
rates by peer and in total. The client checks that it got what it asked for; whoever uses a record checks its
certificate (`CertifiedRecord.check`).
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
from nsllm.p2p.framing import END, FramedStream, frame_of
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, refusal, refused_by
from nsllm.p2p.protocols.lines import LISTEN_S, LISTEN_TO_STRANGERS_S, Lines, questions
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

    async def answer(framed: FramedStream) -> bool:
        """Answer one request; False: refused."""
        request = await framed.receive(FetchRequest)
        began_s = trio.current_time()
        member = directory.member_of(framed.peer) is not None
        if not member and not limiter.take(framed.peer, request.query.cost):
            await framed.send(FetchAnswer(answer=refusal(TOO_MUCH)))
            return False
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
        frames = [frame_of(FetchAnswer(answer=Found(record=record)), MAX_FETCH_BYTES) for record in found]
        for frame in frames[:-1]:
            await framed.send_frames([frame])
        await framed.send_frames([*frames[-1:], END])
        return True

    async def handler(stream: Stream) -> None:
        member = directory.member_of(stream.peer) is not None
        listen_s = LISTEN_S if member else LISTEN_TO_STRANGERS_S
        async for framed in questions(stream, MAX_FETCH_BYTES, listen_s=listen_s):
            with trio.fail_after(SERVE_S):
                if not await answer(framed):
                    return

    return handler


class Fetcher:
    """The asking side; keeps its lines."""

    def __init__(self, network: Network) -> None:
        self._lines = Lines(network, FETCH, MAX_FETCH_BYTES)

    async def by_keys(
        self, peer: PeerId, keys: Sequence[Digest], *, deadline_s: float = 5.0
    ) -> tuple[CertifiedRecord, ...]:
        """The records that `peer` holds of at most `MAX_KEYS` request keys; certificates are not checked here.

        Raises:
            NetworkError: no answer, or a refusal.
            MisbehaviourError: a record that was not asked for.
        """

        async def talk(framed: FramedStream) -> tuple[CertifiedRecord, ...]:
            wanted = dict.fromkeys(keys)
            found: list[CertifiedRecord] = []
            await framed.send(FetchRequest(query=ByKeys(keys=tuple(wanted))))
            while (record := await _next(framed)) is not None:
                key = record.signed.record.key()
                if key not in wanted:
                    raise MisbehaviourError(f"{peer} sent a record that was not asked for, or one twice")
                del wanted[key]
                found.append(record)
            return tuple(found)

        return await self._lines.ask(peer, talk, deadline_s=deadline_s)

    async def near(
        self, peer: PeerId, embedding: bytes, count: int, *, deadline_s: float = 5.0
    ) -> tuple[CertifiedRecord, ...]:
        """At most `count` records of `peer` near an embedding; neither nearness nor certificates are checked here.

        Raises:
            NetworkError: no answer, or a refusal.
            MisbehaviourError: more than were asked for.
        """

        async def talk(framed: FramedStream) -> tuple[CertifiedRecord, ...]:
            found: list[CertifiedRecord] = []
            await framed.send(FetchRequest(query=ByMeaning(embedding=embedding, count=count)))
            while (record := await _next(framed)) is not None:
                if len(found) == count:
                    raise MisbehaviourError(f"{peer} sent more than {count} near records")
                found.append(record)
            return tuple(found)

        return await self._lines.ask(peer, talk, deadline_s=deadline_s)


async def _next(framed: FramedStream) -> CertifiedRecord | None:
    """The next record of an answer; None after the last."""
    frame = await framed.receive_or_end(FetchAnswer)
    if frame is None:
        return None
    if isinstance(frame.answer, Refused):
        raise refused_by(framed.peer, FETCH, frame.answer)
    return frame.answer.record
