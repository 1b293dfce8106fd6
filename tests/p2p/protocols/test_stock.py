"""Members compare their stock; strangers hear nothing, and answers that were not asked for are refused."""

from __future__ import annotations

from typing import Any

import pytest

from nsllm.ids import ZERO_DIGEST, Digest
from nsllm.p2p.errors import MisbehaviourError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Stream
from nsllm.p2p.protocols.stock import (
    MAX_STOCK_BYTES,
    STOCK,
    Differing,
    Lacking,
    Shelf,
    StockAnswer,
    StockClient,
    StockRequest,
    serve_stock,
)

ONE, OTHER = Digest(b"\1" * 32), Digest(b"\2" * 32)
SHELVES = [Shelf(space="key", number=number, stock=ZERO_DIGEST) for number in range(3)]


class FakeStock:
    async def differing(self, shelves: Any) -> tuple[int, ...]:
        return tuple(at for at, shelf in enumerate(shelves) if shelf.number != 1)

    async def lacking(self, records: Any) -> tuple[Digest, ...]:
        return tuple(record for record in records if record == OTHER)


async def test_members_compare_and_hear_what_is_lacking(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    bob.network.handle(STOCK, serve_stock(bob.directory, FakeStock()))
    async with town.running():
        client = StockClient(alice.network)
        assert await client.compare(bob.peer, SHELVES) == (SHELVES[0], SHELVES[2])
        assert await client.lacking(bob.peer, [ONE, OTHER]) == (OTHER,)
    assert sum(event[1] == "open" and event[4] == STOCK for event in town.trace) == 1, "one line for both questions"


async def test_strangers_are_refused(town: Any, autojump_clock: Any) -> None:
    bob, carol = town.citizens[1:3]
    bob.network.handle(STOCK, serve_stock(bob.directory, FakeStock()))
    async with town.running():
        with pytest.raises(RefusedError, match="members only"):
            await StockClient(carol.network).lacking(bob.peer, [ONE])


@pytest.mark.parametrize(
    "answer", [Differing(positions=(3,)), Differing(positions=()), Lacking(records=(OTHER,)), Lacking(records=())]
)
async def test_answers_to_another_question_are_refused(town: Any, autojump_clock: Any, answer: Any) -> None:
    alice, bob = town.citizens[:2]

    async def cheat(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_STOCK_BYTES)
        await framed.receive(StockRequest)
        await framed.send(StockAnswer(answer=answer))

    bob.network.handle(STOCK, cheat)
    async with town.running():
        client = StockClient(alice.network)
        if not isinstance(answer, Differing) or answer.positions:
            with pytest.raises(MisbehaviourError):
                await client.compare(bob.peer, SHELVES)
        if not isinstance(answer, Lacking) or answer.records:
            with pytest.raises(MisbehaviourError):
                await client.lacking(bob.peer, [ONE])
