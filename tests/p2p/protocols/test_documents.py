"""Chunks travel: digests first, then what is lacking; looked for by meaning; and every refusal has its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nsllm.cache_dht.withdrawal import Withdrawal, sign_withdrawal
from nsllm.ids import ZERO_DIGEST, NetworkId, TimeMs
from nsllm.p2p.errors import MisbehaviourError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.protocols.passages import PASSAGES, STRANGERS, find_passages, serve_passages
from nsllm.p2p.protocols.shelve import (
    MAX_SHELVE_BYTES,
    SHELVE,
    Offer,
    Offered,
    ShelveAnswer,
    Wanted,
    serve_shelve,
    shelve,
)
from nsllm.record import Chunk, sign_chunk

NETWORK = NetworkId(bytes(range(32)))


def chunk(key, number):
    return sign_chunk(
        key,
        Chunk(
            network=NETWORK,
            member=key.address,
            document=ZERO_DIGEST,
            source="a.txt",
            number=number,
            start=0,
            end=4,
            text=f"text {number}",
            encoder=ZERO_DIGEST,
            embedding=bytes(384),
            created_ms=1,
        ),
    )


def offer_of(chunks):
    return {
        one.chunk.digest(): Offered(
            digest=one.chunk.digest(), member=one.chunk.member, document=one.chunk.document, created_ms=1
        )
        for one in chunks
    }


@dataclass
class Shelf:
    has: set = field(default_factory=set)
    withdrawn: tuple = ()
    heard: list = field(default_factory=list)
    stored: list = field(default_factory=list)
    reason: str | None = None

    async def offered(self, offer):
        self.heard += offer.withdrawals
        lacking = tuple(one.digest for one in offer.chunks if one.digest not in self.has)
        return Wanted(digests=lacking, withdrawals=self.withdrawn)

    async def shelve(self, chunks, member):
        if self.reason is None:
            self.stored += chunks
        return self.reason


async def test_only_what_the_holder_lacks_is_sent(town, autojump_clock) -> None:
    alice, bob = town.citizens[:2]
    chunks = [chunk(alice.member_key, number) for number in range(3)]
    known = {one.chunk.digest(): one for one in chunks}
    gone = Withdrawal(network=NETWORK, member=alice.address, document=ZERO_DIGEST, at_ms=TimeMs(1))
    withdrawal = sign_withdrawal(alice.member_key, gone)
    shelf = Shelf(has={chunks[1].chunk.digest()}, withdrawn=(withdrawal,))
    bob.network.handle(SHELVE, serve_shelve(bob.directory, shelf))
    loaded = []

    async def load(digests):
        loaded.extend(digests)
        return [known[digest] for digest in digests]

    async with town.running():
        done = await shelve(alice.network, bob.peer, offer_of(chunks), load, [withdrawal])
        assert (done.sent, done.withdrawals) == (2, (withdrawal,))
        assert shelf.stored == [chunks[0], chunks[2]]
        assert shelf.heard == [withdrawal]
        shelf.has = set(known)
        assert (await shelve(alice.network, bob.peer, offer_of(chunks), load)).sent == 0
        assert len(loaded) == 2
        shelf.has, shelf.reason = set(), "no room"
        with pytest.raises(RefusedError, match="no room"):
            await shelve(alice.network, bob.peer, offer_of(chunks), load)


async def test_a_holder_that_wants_something_else_and_a_sender_that_sends_it(town, autojump_clock) -> None:
    alice, bob = town.citizens[:2]
    one, other = chunk(alice.member_key, 1), chunk(alice.member_key, 2)
    shelf = Shelf()

    async def wants_another(stream):
        framed = FramedStream(stream, MAX_SHELVE_BYTES)
        await framed.receive(Offer)
        await framed.send(ShelveAnswer(answer=Wanted(digests=(other.chunk.digest(),))))

    async def load(_digests):
        return [other]

    bob.network.handle(SHELVE, wants_another)
    async with town.running():
        with pytest.raises(MisbehaviourError, match="not offered"):
            await shelve(alice.network, bob.peer, offer_of([one]), load)
        bob.network.handle(SHELVE, serve_shelve(bob.directory, shelf))
        with pytest.raises(Exception, match=r"finish|closed|reset|ended|stream"):
            await shelve(alice.network, bob.peer, offer_of([one]), load, deadline_s=5)
    assert shelf.stored == []


async def test_strangers_may_look_within_a_rate_and_shelve_nothing(town, autojump_clock) -> None:
    alice, bob, carol = town.citizens
    chunks = [chunk(alice.member_key, number) for number in range(5)]

    async def near(_embedding, count):
        return chunks[:count]

    bob.network.handle(PASSAGES, serve_passages(bob.directory, near))
    bob.network.handle(SHELVE, serve_shelve(bob.directory, Shelf()))
    async with town.running():
        assert await find_passages(carol.network, bob.peer, bytes(384), 3) == tuple(chunks[:3])
        with pytest.raises(RefusedError, match="members only"):
            await shelve(carol.network, bob.peer, offer_of(chunks), near)
        with pytest.raises(RefusedError, match="too many"):
            for _ in range(STRANGERS.per_peer):
                await find_passages(carol.network, bob.peer, bytes(384), 3)
        for _ in range(STRANGERS.per_peer):
            assert len(await find_passages(alice.network, bob.peer, bytes(384), 5)) == 5


async def test_more_chunks_than_were_asked_for_are_a_fault(town, autojump_clock) -> None:
    alice, bob = town.citizens[:2]

    async def near(_embedding, _count):
        return [chunk(alice.member_key, number) for number in range(5)]

    bob.network.handle(PASSAGES, serve_passages(bob.directory, near))
    async with town.running():
        with pytest.raises(MisbehaviourError, match="more than 2"):
            await find_passages(alice.network, bob.peer, bytes(384), 2)
