"""A like question is answered from the cache: from this peer's store, from another's, or not at all."""

from __future__ import annotations

import pytest
import trio

from nsllm.node.chat import ChatCommand, ChatStarted
from nsllm.node.near_answers import NearAnswers
from nsllm.record import Message, Sampling

QUESTION = "Why do tides rise and fall along the coast?"
LIKE = "why do tides rise and fall along the coast"
EXPIRY_S = 600
NEAR_MISS = "why do tides not rise and fall along the coast"


async def ask(peer, text: str, **changes) -> ChatStarted:
    command = ChatCommand("default", (Message(role="user", content=text),), Sampling(), "public", **changes)
    async with peer.chat(command) as channel:
        events = [event async for event in channel]
    assert isinstance(events[0], ChatStarted)
    return events[0]


@pytest.fixture
def no_audits(monkeypatch) -> None:
    monkeypatch.setattr("nsllm.cache_dht.reuse.AUDIT", 0.0)
    monkeypatch.setattr("nsllm.cache_dht.reuse.AUDIT_STRANGER", 0.0)


def test_a_like_question_is_served_with_its_provenance_wherever_it_is_asked(on_stage, no_audits) -> None:
    async def play(stage) -> None:
        first = await stage.ask(stage.peers[0], QUESTION, visibility="public")
        await stage.anchored(stage.peers[0], first)
        for peer in stage.peers:
            like = await stage.ask(peer, LIKE, visibility="public")
            source = like.started.source
            assert (source.kind, source.match) == ("cache", "semantic")
            assert like.text == first.text
            assert source.similarity_ppm is not None
            assert source.similarity_ppm > 800_000
            assert source.error_bound_ppm is not None
            assert 0 < source.error_bound_ppm <= 20_000
            assert source.score_ppm is not None
            assert source.height is not None
            assert source.model_digest is not None
            assert source.generator == first.started.source.generator
            assert (await peer.receipt(like.started.completion_id)).state != "none"
            assert (await peer.status()).cache["hits_semantic"] == 1
        exact = await stage.ask(stage.peers[1], QUESTION, visibility="public")
        assert (exact.started.source.match, exact.started.source.error_bound_ppm) == ("exact", 0)

    on_stage(play)


def test_what_changes_with_time_expires_even_for_a_repeat_and_then_the_newest_is_served(
    on_stage, no_audits, monkeypatch
) -> None:
    monkeypatch.setattr("nsllm.cache_dht.guards.TIMELY_MS", EXPIRY_S * 1000)
    timely = "What is the latest version of the lighthouse firmware?"

    async def play(stage) -> None:
        first, other = stage.peers[:2]
        old = await stage.ask(first, timely, visibility="public")
        await stage.anchored(first, old)
        for peer in (first, other):
            assert (await ask(peer, timely)).source.match == "exact"
        await trio.sleep(EXPIRY_S)
        for peer in (first, other):
            assert (await ask(peer, timely.lower())).source.kind == "engine"
        new = await stage.ask(other, timely, visibility="public", semantic=False)
        assert new.started.source.kind == "engine"
        await stage.anchored(other, new)
        await trio.sleep(60)
        for peer in stage.peers:
            again = await ask(peer, timely)
            assert again.source.kind == "cache"
            assert again.source.age_ms < EXPIRY_S * 500
        assert (await ask(other, timely)).source.match == "exact"

    on_stage(play)


def test_near_misses_and_refusals_are_generated(on_stage, no_audits) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        first = await stage.ask(peer, QUESTION, visibility="public")
        await stage.anchored(peer, first)
        assert (await ask(peer, NEAR_MISS)).source.kind == "engine"
        assert (await ask(peer, LIKE, semantic=False)).source.kind == "engine"
        assert (await ask(peer, LIKE + "?", max_wrong_ppm=0)).source.kind == "engine"
        assert (await ask(peer, QUESTION, semantic=False)).source.match == "exact"
        assert (await ask(peer, QUESTION, reuse=False)).source.kind == "engine"
        assert (await ask(peer, LIKE + " ?")).source.match == "semantic"

    on_stage(play, peers=1)


def test_what_generating_says_is_compared_and_kept(on_stage, monkeypatch) -> None:
    monkeypatch.setattr("nsllm.cache_dht.reuse.AUDIT", 1.0)

    async def play(stage) -> None:
        peer = stage.peers[0]
        first = await stage.ask(peer, QUESTION, visibility="public")
        await stage.anchored(peer, first)
        assert (await ask(peer, LIKE)).source.kind == "engine"  # an audit
        near: NearAnswers = peer.parts.near
        with trio.fail_after(30):
            while not near.counters.right + near.counters.wrong:
                await trio.sleep(0.1)
        assert near.counters.audits == 1
        rows = list(peer.stores.observations.load().rows())
        assert len(rows) == 3  # the neighbourhood, the record, its generator
        assert all(sum(counts) == 1 for _, _, counts in rows)
        assert not any(b"tides" in place for _, place, _ in rows)

    on_stage(play, peers=1)
