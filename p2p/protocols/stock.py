"""`/nsllm/stock/1`: members in line for the same shards compare what they have, and say what they lack.

A stream carries one question after another. First comes a digest of each shard's records, then, of shards that differ,
the records themselves by digest: the answer says which of them are lacking. They go over the push and sealed protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, Protocol

import trio
from msgspec import Meta

from nsllm.canonical import Value
from nsllm.ids import Digest, DigestField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, Refused, refusal, refused_by
from nsllm.p2p.protocols.lines import Lines, questions

STOCK: Final = "/nsllm/stock/1"
MAX_SHELVES: Final = 256
"""Shards that are compared at once."""
MAX_OFFERED: Final = 512
"""Records that are offered at once."""
MAX_STOCK_BYTES: Final = 32 * 1024
SERVE_S: Final = 30.0

RecordDigests = Annotated[tuple[DigestField, ...], Meta(max_length=MAX_OFFERED)]


class Shelf(Value, frozen=True, kw_only=True):
    """What a member has of one shard."""

    space: Literal["embedding", "key"]
    number: Annotated[int, Meta(ge=0, lt=65536)]
    stock: DigestField
    """SHA-256 of its records' digests, ascending, one after another."""


class Compare(Value, frozen=True, kw_only=True, tag="compare"):
    """Shards that both have to do with."""

    shelves: Annotated[tuple[Shelf, ...], Meta(min_length=1, max_length=MAX_SHELVES)]


class Offer(Value, frozen=True, kw_only=True, tag="offer"):
    """Records that the asker has and the other should have."""

    records: RecordDigests


class StockRequest(Value, frozen=True, kw_only=True):
    """Either question."""

    query: Compare | Offer


class Differing(Value, frozen=True, kw_only=True, tag="differing"):
    """Which of the compared shelves are not the same here, by position."""

    positions: Annotated[tuple[Annotated[int, Meta(ge=0, lt=MAX_SHELVES)], ...], Meta(max_length=MAX_SHELVES)]


class Lacking(Value, frozen=True, kw_only=True, tag="lacking"):
    """Which of the offered records are not here, and would be taken."""

    records: RecordDigests


class StockAnswer(Value, frozen=True, kw_only=True):
    """The answer to either question, or why there is none."""

    answer: Differing | Lacking | Refused


class Stock(Protocol):
    """The answering side, as `serve_stock` uses it."""

    async def differing(self, shelves: Sequence[Shelf]) -> tuple[int, ...]:
        """Positions of the shelves whose stock is another here."""
        ...

    async def lacking(self, records: Sequence[Digest]) -> tuple[Digest, ...]:
        """Those of the records that are not here, and would be taken."""
        ...


def serve_stock(directory: PeerDirectory, stock: Stock) -> StreamHandler:
    """Handler for data peers."""

    async def handler(stream: Stream) -> None:
        async for framed in questions(stream, MAX_STOCK_BYTES):
            with trio.fail_after(SERVE_S):
                request = await framed.receive(StockRequest)
                if directory.member_of(stream.peer) is None:
                    await framed.send(StockAnswer(answer=refusal(MEMBERS_ONLY)))
                    return
                if isinstance(request.query, Compare):
                    differing = await stock.differing(request.query.shelves)
                    await framed.send(StockAnswer(answer=Differing(positions=differing)))
                else:
                    lacking = await stock.lacking(request.query.records)
                    await framed.send(StockAnswer(answer=Lacking(records=lacking)))

    return handler


class StockClient:
    """The asking side; keeps its lines."""

    def __init__(self, network: Network) -> None:
        self._lines = Lines(network, STOCK, MAX_STOCK_BYTES)

    async def compare(self, peer: PeerId, shelves: Sequence[Shelf], *, deadline_s: float = 10.0) -> tuple[Shelf, ...]:
        """Those of at most `MAX_SHELVES` shelves whose stock is another at `peer`.

        Raises:
            RefusedError: it will not say.
            NetworkError: no answer.
        """
        answer = await self._ask(peer, Compare(shelves=tuple(shelves)), deadline_s)
        if not isinstance(answer, Differing) or any(at >= len(shelves) for at in answer.positions):
            raise MisbehaviourError(f"{peer} compared shelves that it was not asked about")
        return tuple(shelves[at] for at in answer.positions)

    async def lacking(self, peer: PeerId, records: Sequence[Digest], *, deadline_s: float = 10.0) -> tuple[Digest, ...]:
        """Those of at most `MAX_OFFERED` records that `peer` lacks. Raises as `compare` does."""
        answer = await self._ask(peer, Offer(records=tuple(records)), deadline_s)
        if not isinstance(answer, Lacking) or not set(answer.records) <= set(records):
            raise MisbehaviourError(f"{peer} lacks records that it was not offered")
        return answer.records

    async def _ask(self, peer: PeerId, query: Compare | Offer, deadline_s: float) -> Differing | Lacking:
        async def talk(framed: FramedStream) -> Differing | Lacking:
            await framed.send(StockRequest(query=query))
            answer = (await framed.receive(StockAnswer)).answer
            if isinstance(answer, Refused):
                raise refused_by(peer, STOCK, answer)
            return answer

        return await self._lines.ask(peer, talk, deadline_s=deadline_s)
