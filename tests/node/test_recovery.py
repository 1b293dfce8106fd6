"""Whole peers on virtual time, with a disk that fills up and with stores that are lost."""

from __future__ import annotations

import pytest
import trio

from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.placement import key_shard
from nsllm.errors import OwnFault
from nsllm.governance.errors import StorageError


def test_a_validator_with_a_full_disk_says_so_and_takes_part_again(on_stage) -> None:
    async def play(stage) -> None:
        peer, other, *_ = stage.peers
        state = peer.ledger._state
        commit = state.commit
        told: list[str] = []
        peer.parts.context.events.tap(lambda event: told.append(f"{event.kind} {event.fields.get('reason')}"))

        def full(*_: object) -> None:
            raise StorageError("ledger: database or disk is full", hint="free some space")

        state.commit = full
        answer = await stage.ask(other, "How do locks work?")
        await stage.anchored(other, answer)
        assert "consensus_halted ledger: database or disk is full" in told
        assert peer.ledger.height < other.ledger.height
        await stage.until(lambda: peer.parts.agreement.halted is not None)
        notices = (await peer.status()).notices
        assert "consensus halted: ledger: database or disk is full (free some space)" in notices
        state.commit = commit
        await stage.until(lambda: peer.ledger.height == other.ledger.height)
        assert peer.ledger.log_root == other.ledger.log_root
        assert "consensus_resumed None" in told
        assert peer.parts.agreement.halted is None
        await stage.anchored(peer, await stage.ask(peer, "How do keys work?"))

    on_stage(play)


def test_an_answer_that_cannot_be_kept_is_refused_and_the_peer_goes_on(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        kept = await stage.ask(peer, "What is kept?")
        await stage.anchored(peer, kept)
        database = peer.stores.completions._connection
        database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(OwnFault, match="full"):
            for number in range(50):
                await stage.ask(peer, f"What is number {number}?")
        database.execute("PRAGMA max_page_count = 1000000")
        assert (await peer.receipt(kept.started.completion_id)).state == "anchored"
        await stage.anchored(peer, await stage.ask(peer, "What comes after?"))

    on_stage(play)


def test_a_full_shelf_stops_no_publication(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]

        async def full(*_: object) -> bool:
            raise StoreError("record store: disk is full", hint="free some space")

        peer.stores.records.put = full
        answers = [await stage.ask(peer, f"What is {number} times four?") for number in range(8)]
        published = [answer for answer in answers if answer.finished.publication == "pending"]
        assert len(published) > 4
        for answer in published:
            await stage.anchored(peer, answer)
        await trio.sleep(120)
        assert await peer.stores.records.digests() == ()
        assert peer in stage.peers

    on_stage(play)


def test_a_lost_store_is_filled_again_from_the_other_holders(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        for number in range(8):
            await stage.anchored(peer, await stage.ask(peer, f"What is {number} times two?"))
        await trio.sleep(30)
        held = {number: set(await p.stores.records.digests()) for number, p in enumerate(stage.peers)}
        assert all(held.values())
        stage.network.stop(1)
        await trio.sleep(1)
        path = stage.network.peers[1].settled.config.data_dir / "records.sqlite"
        path.write_bytes(b"no database" * 1000)
        await stage.start(1)
        again = stage.network.peers[1].peer
        assert any("record store was damaged" in notice for notice in (await again.status()).notices)
        await trio.sleep(30)
        assert set(await again.stores.records.digests()) == held[1]

    on_stage(play)


def test_a_holder_that_was_away_fetches_what_it_missed(on_stage) -> None:
    async def play(stage) -> None:
        stage.network.stop(3)
        peer = stage.peers[0]
        await trio.sleep(1)
        for number in range(8):
            await stage.anchored(peer, await stage.ask(peer, f"What is {number} times three?"))
        await trio.sleep(1200)  # generator and keepers have given up by now
        await stage.start(3)
        back = stage.network.peers[3].peer
        await trio.sleep(90)
        shards = back.parts.context.genesis.placement.shards
        wanted = set()
        for height in range(1, peer.ledger.height + 1):
            for leaf in await peer.ledger.leaves(height):
                if back.parts.context.address in back.parts.cache.holders_of(key_shard(leaf.request_key, shards)):
                    wanted.add(leaf.record)
        assert wanted
        assert wanted <= set(await back.stores.records.digests())

    on_stage(play)
