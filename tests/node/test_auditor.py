"""Each peer's own log says what it did, rejections included, and can be checked by others without the private part."""

from __future__ import annotations

import pytest
import trio

from nsllm.errors import EncodingError
from nsllm.governance.errors import LogError, StorageError
from nsllm.governance.peer_log import verify_entry, verify_growth
from nsllm.node.auditor import Auditor
from nsllm.node.views import PeerEvent


async def logged(peer) -> list:
    await trio.sleep(1)
    return await peer.stores.peer_log.entries(0, peer.stores.peer_log.size)


def fields(entry) -> dict:
    return {field.name: field.value for field in entry.fields}


def test_answers_and_rejections_are_logged_and_private_ones_are_marked(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        public = await stage.ask(peer, "How do tides work?")
        secret = await stage.ask(peer, "What is my secret?", visibility="private")
        toxic = "you fucking stupid piece of shit, i will kill you, die you worthless idiot"
        await stage.ask(peer, toxic)
        await stage.ask(peer, toxic, visibility="private")
        await stage.anchored(peer, public)
        entries = await logged(peer)
        of = {(entry.kind, fields(entry).get("completion")): entry for entry in entries}
        assert of["answered", public.started.completion_id].private is False
        assert of["answered", secret.started.completion_id].private is True
        withheld = [entry for entry in entries if entry.kind == "withheld"]
        assert [entry.private for entry in withheld] == [False, True]
        assert fields(withheld[0])["stage"] == "input"
        assert "toxicity" in fields(withheld[0])["reason"]
        assert "certified" in {entry.kind for entry in entries}
        everything = repr([fields(entry) for entry in entries])
        assert "secret" not in everything
        assert "tides" not in everything
        assert "stupid" not in everything

    on_stage(play, peers=1)


def test_every_entry_is_proved_by_a_checkpoint_and_the_log_only_grows(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        network, address = peer.parts.context.network_id, peer.parts.context.address
        await stage.ask(peer, "How do tides work?")
        await logged(peer)
        before = peer.stores.peer_log.checkpoint()
        await stage.ask(peer, "How do rivers flow?", visibility="private")
        entries = await logged(peer)
        after = peer.stores.peer_log.checkpoint()
        size = after.checkpoint.size
        for index, entry in enumerate(entries):
            verify_entry(entry, await peer.stores.peer_log.inclusion(index, size), after, network, address)
        with pytest.raises(LogError):
            verify_entry(entries[0], await peer.stores.peer_log.inclusion(1, size), after, network, address)
        path = await peer.stores.peer_log.consistency(before.checkpoint.size, size)
        verify_growth(before, after, path, network, address)

    on_stage(play, peers=1)


def test_checkpoints_ride_with_blocks_of_records(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        await stage.anchored(peer, await stage.ask(peer, "How do tides work?"))
        size = peer.ledger.log_size
        await trio.sleep(120)
        assert peer.ledger.log_size == size  # no block for a checkpoint alone
        await stage.anchored(peer, await stage.ask(peer, "How do rivers flow?"))
        assert peer.ledger.log_size == size + 2

    on_stage(play, peers=1)


def test_a_peer_that_stops_writes_down_what_it_did_last(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        for number in range(50):
            peer.parts.context.events.emit("withheld", completion=f"chatcmpl-{number}", visibility="public")
        stage.network.stop(0)
        await trio.sleep(1)
        await stage.start(0)
        kinds = [entry.kind for entry in await logged(stage.network.peers[0].peer)]
        assert kinds.count("withheld") == 50

    on_stage(play, peers=1)


async def test_a_full_disk_or_backlog_is_told_and_stops_nothing(autojump_clock, nursery, caplog) -> None:
    class Log:
        size = 0

        def __init__(self) -> None:
            self.kinds: list[str] = []
            self.full = True

        async def append_all(self, happenings) -> int:
            if self.full:
                raise StorageError("peer log: disk is full")
            if len(happenings) > 1 and any(each.kind == "certified" for each in happenings):
                raise EncodingError("one of them cannot be logged")
            self.kinds += [each.kind for each in happenings]
            return len(self.kinds)

    peer_log = Log()
    auditor = Auditor(peer_log, None)
    for _ in range(5000):
        auditor.hear(PeerEvent("answered", 1, {"completion": "chatcmpl-1"}))
    assert "audit_backlog_full" in caplog.text
    nursery.start_soon(auditor.run)
    await trio.sleep(1)
    assert "audit_failed" in caplog.text
    peer_log.full = False
    auditor.hear(PeerEvent("withheld", 1, {"completion": "chatcmpl-2", "note": "x" * 5000, "none": None}))
    auditor.hear(PeerEvent("peer_connected", 1, {}))  # no audit event
    await trio.sleep(1)
    assert peer_log.kinds == ["withheld"]
    for kind in ("answered", "certified", "answered"):
        auditor.hear(PeerEvent(kind, 1, {}))
    await trio.sleep(1)
    assert peer_log.kinds == ["withheld", "answered", "certified", "answered"]
