"""Embeddings and counts of reuse travel: what was asked for and what was told, members' words only, in bounds."""

from __future__ import annotations

import pytest

from nsllm.cache_dht.embedded import Embedded, packed, sign_embedded, text_digest
from nsllm.cache_dht.observations import BINS
from nsllm.errors import NsllmError
from nsllm.ids import ZERO_DIGEST, Digest, NetworkId
from nsllm.p2p.errors import MisbehaviourError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.protocols.counts import COUNTS, MAX_ROWS, CountRow, serve_counts, tell_counts
from nsllm.p2p.protocols.embeddings import (
    EMBEDDINGS,
    MAX_AT_ONCE,
    MAX_EMBEDDINGS_BYTES,
    STRANGERS,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    Given,
    give_embeddings,
    serve_embeddings,
    want_embeddings,
)

NETWORK = NetworkId(bytes(range(32)))
MOST = 2**32 - 1


def embedding(key, text):
    return sign_embedded(
        key,
        Embedded(
            network=NETWORK,
            member=key.address,
            encoder=ZERO_DIGEST,
            text=text_digest(NETWORK, text),
            vector=packed((1.0, *([0.0] * 383))),
            tokens=3,
            created_ms=1,
        ),
    )


class Holder:
    def __init__(self, *held) -> None:
        self.held, self.kept, self.reason = {one.embedded.key(): one for one in held}, [], None

    async def look(self, keys):
        return [self.held[key] for key in keys if key in self.held]

    async def keep(self, embeddings, member):
        self.kept.append((member.address, list(embeddings)))
        return self.reason


async def test_embeddings_go_both_ways(town, autojump_clock) -> None:
    alice, bob = town.citizens[:2]
    rows = [embedding(alice.member_key, f"text {number}") for number in range(MAX_AT_ONCE)]
    holder = Holder(*rows[:3])
    bob.network.handle(EMBEDDINGS, serve_embeddings(bob.directory, holder.look, holder.keep))
    async with town.running():
        keys = [one.embedded.key() for one in rows]
        assert await want_embeddings(alice.network, bob.peer, keys) == tuple(rows[:3])
        assert await want_embeddings(alice.network, bob.peer, keys[3:]) == ()
        await give_embeddings(alice.network, bob.peer, rows)
        assert holder.kept == [(alice.address, rows)]
        holder.reason = "no room"
        with pytest.raises(RefusedError, match="no room"):
            await give_embeddings(alice.network, bob.peer, rows[:1])
        with pytest.raises(NsllmError):
            await want_embeddings(alice.network, bob.peer, [Digest(bytes([n]) * 32) for n in range(MAX_AT_ONCE + 1)])


async def test_strangers_look_up_within_a_rate_and_give_nothing(town, autojump_clock) -> None:
    alice, bob, stranger = town.citizens
    one = embedding(alice.member_key, "text")
    holder = Holder(one)
    bob.network.handle(EMBEDDINGS, serve_embeddings(bob.directory, holder.look, holder.keep))
    async with town.running():
        with pytest.raises(RefusedError, match="members only"):
            await give_embeddings(stranger.network, bob.peer, [one])
        assert holder.kept == []
        keys = [one.embedded.key()] * MAX_AT_ONCE
        for _ in range(STRANGERS.per_peer // MAX_AT_ONCE):
            assert await want_embeddings(stranger.network, bob.peer, keys[:1]) == (one,)
        with pytest.raises(RefusedError, match="too many"):
            for _ in range(STRANGERS.per_peer):
                await want_embeddings(stranger.network, bob.peer, keys[:1])


@pytest.mark.parametrize("given", [("other",), ("text", "text"), ("text", "other")])
async def test_a_holder_that_gives_something_else_misbehaves(town, autojump_clock, given) -> None:
    alice, bob = town.citizens[:2]

    async def liar(stream):
        framed = FramedStream(stream, MAX_EMBEDDINGS_BYTES)
        await framed.receive(EmbeddingsRequest)
        rows = tuple(embedding(alice.member_key, text) for text in given)
        await framed.send(EmbeddingsAnswer(answer=Given(embeddings=rows)))

    bob.network.handle(EMBEDDINGS, liar)
    async with town.running():
        with pytest.raises(MisbehaviourError):
            await want_embeddings(alice.network, bob.peer, [embedding(alice.member_key, "text").embedded.key()])


async def test_counts_are_heard_from_members_under_their_own_name(town, autojump_clock) -> None:
    alice, bob, stranger = town.citizens
    heard, reasons = [], [None]

    async def hear(rows, member):
        heard.append((member.address, len(rows)))
        return reasons[0]

    bob.network.handle(COUNTS, serve_counts(bob.directory, hear))
    async with town.running():
        rows = [CountRow(place=bytes([number]) * 32, counts=(MOST,) * (2 * BINS)) for number in range(MAX_ROWS)]
        await tell_counts(alice.network, bob.peer, rows)  # the largest that there are fit
        assert heard == [(alice.address, MAX_ROWS)]
        with pytest.raises(RefusedError, match="members only"):
            await tell_counts(stranger.network, bob.peer, rows[:1])
        reasons[0] = "too much"
        with pytest.raises(RefusedError, match="too much"):
            await tell_counts(alice.network, bob.peer, rows[:1])
        assert len(heard) == 2
