"""A state that diverges halts consensus loudly and nothing else; what a peer says of its readiness is what holds."""

from __future__ import annotations

from dataclasses import replace

import trio

from nsllm.consensus.errors import DivergenceError
from nsllm.errors import OwnFault


def diverge(peer) -> None:
    def commit(_decided):
        raise DivergenceError("log root is 0xaa…, the quorum certified 0xbb…", hint="move the ledger aside")

    peer.ledger._state.commit = commit


def test_a_validator_that_diverges_halts_says_so_and_goes_on_answering(on_stage) -> None:
    async def play(stage) -> None:
        peer, other, *_ = stage.peers
        told: list = []
        peer.parts.context.events.tap(told.append)
        diverge(peer)
        await stage.anchored(other, await stage.ask(other, "How do tides work?"))
        await stage.until(lambda: peer.parts.agreement.halted is not None)
        assert [event.fields["reason"] for event in told if event.kind == "consensus_halted"]
        status = await peer.status()
        assert "0xbb" in status.consensus["halted"]
        assert any("consensus halted" in notice for notice in status.notices)
        # the others are a quorum without it
        await stage.anchored(other, await stage.ask(other, "How do rivers flow?"))
        assert peer.ledger.height < other.ledger.height
        # local answers go on, as promises that this peer cannot see kept
        answer = await stage.ask(peer, "How does bread rise?")
        assert answer.text
        assert (await stage.ask(peer, "What is mine?", visibility="private")).finished.publication == "private"
        await trio.sleep(60)
        assert (await peer.receipt(answer.started.completion_id)).state == "pending"
        assert (await peer.receipt(answer.started.completion_id)).receipt_json is None
        entries = await peer.stores.peer_log.entries(0, peer.stores.peer_log.size)
        assert "consensus_halted" in {entry.kind for entry in entries}

    on_stage(play)


def test_a_follower_that_diverges_halts_too(on_stage) -> None:
    async def play(stage) -> None:
        follower = stage.network.add()
        peer = await stage.network.start(stage.nursery, follower.number)
        await stage.until(lambda: peer.readiness().ready)
        diverge(peer)
        first = stage.network.peers[0].peer
        await stage.anchored(first, await stage.ask(first, "How do tides work?"))
        await stage.until(lambda: peer.parts.agreement.halted is not None)
        assert "0xbb" in (await peer.status()).consensus["halted"]
        assert (await stage.ask(peer, "What is mine?", visibility="private")).text

    on_stage(play)


def test_a_fault_of_our_own_pauses_consensus_and_it_signs_nothing_twice(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        told: list[str] = []
        peer.parts.context.events.tap(lambda event: told.append(event.kind))
        driver = peer.parts.agreement._driver
        append, failures = driver._wal.append, [OwnFault("cannot write wal: no space left", hint="free some space")] * 2

        def full(entry: bytes) -> None:
            if failures:
                raise failures.pop()
            append(entry)

        driver._wal.append = full
        answer = await stage.ask(peer, "How do tides work?")
        await stage.anchored(peer, answer)
        assert told.count("consensus_halted") == told.count("consensus_resumed") == 1
        assert "signing_refused" not in told
        assert "offence" not in told
        assert peer.parts.agreement.halted is None

    on_stage(play)


def test_readiness_says_what_is_missing(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        assert peer.readiness().detail == ""
        stage.network.stop(3)
        await stage.until(lambda: len(peer._world.network.connected()) == 2)
        assert peer.readiness().ready  # three of four are a quorum
        stage.network.stop(2)
        await stage.until(lambda: not peer.readiness().ready)
        readiness = peer.readiness()
        assert (readiness.genesis, readiness.engine, readiness.quorum) == (True, True, False)
        assert readiness.detail == "2 of 3 validators connected"
        info = peer._world.engine.info
        peer._world.engine.info = lambda: replace(info(), state="loading")
        assert peer.readiness().detail == "engine is loading; 2 of 3 validators connected"

    on_stage(play)


def test_a_page_shows_no_data_rather_than_a_made_up_value(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        stage.network.stop(3)
        stage.network.add()
        await trio.sleep(30)
        rows = {row.peer_id: row for row in peer.peers()}
        own, away = (stage.network.peers[number].settled.identity.peer_id for number in (0, 3))
        assert peer.peers()[0].peer_id == own
        assert peer.peers()[0].rtt_ms is None
        assert rows[away].connected is False
        assert any(row.rtt_ms is not None for row in peer.peers()[1:])
        status = await peer.status()
        assert status.certificates == ()
        assert status.anchors == ()
        assert any("stand-in" in notice for notice in status.notices)

    on_stage(play)
