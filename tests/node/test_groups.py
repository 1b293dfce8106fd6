"""Groups on whole simulated networks: shared by those who have the key, sealed for everybody else."""

from __future__ import annotations

import stat

import pytest
import trio
from msgspec.structs import replace

from nsllm.errors import UsageError
from nsllm.governance.verify import verify_receipt
from nsllm.ids import hex0x
from nsllm.node.chat import ChatCommand, ChatFinished, ChatStarted
from nsllm.node.errors import InvalidRequestError
from nsllm.node.groups import MAX_PAD_MS, GroupFolder, group_invite, parse_group_invite
from nsllm.node.service import Wish
from nsllm.p2p.protocols.fetch import Fetcher
from nsllm.p2p.protocols.sealed import NOT_IN_GROUP, want
from nsllm.record import Message, Sampling

KEY = bytes(range(32))
QUESTION = "What did the lab measure?"


def folder_of(stage, number) -> GroupFolder:
    return GroupFolder(stage.network.peers[number].settled.config.data_dir)


def join(stage, *numbers, name="lab", key=KEY, pad_ms=0) -> None:
    for number in numbers:
        folder_of(stage, number).create(name, key, pad_ms)


async def ask(peer, question=QUESTION, group="lab"):
    command = ChatCommand(
        model="default",
        messages=(Message(role="user", content=question),),
        sampling=Sampling(),
        visibility="group",
        group=group,
    )
    async with peer.chat(command) as channel:
        events = [event async for event in channel]
    assert isinstance(events[0], ChatStarted)
    assert isinstance(events[-1], ChatFinished)
    return events[0], events[-1], "".join(event.text for event in events[1:-1])


async def receipt(stage, peer, started, state="anchored"):
    with trio.fail_after(200):
        while (status := await peer.receipt(started.completion_id)).state != state:
            await trio.sleep(0.1)
    return status


async def sealed_at(stage):
    return [number for number, peer in enumerate(stage.peers) if await peer.stores.sealed.count()]


def test_a_group_shares_certified_answers_and_nobody_else_can_read_them(on_stage) -> None:
    async def play(stage) -> None:
        join(stage, 0, 1, 2)  # three of four validators: enough to certify
        asked, other, outside = stage.peers[0], stage.peers[1], stage.peers[3]
        started, _, text = await ask(asked)
        assert (started.visibility, started.group, started.source.kind) == ("group", "lab", "engine")
        status = await receipt(stage, asked, started)
        genesis = asked.parts.context.genesis
        assert verify_receipt(status.receipt_json, genesis, "anchored").validators == 4, "offline, without the key"
        await trio.sleep(60)

        again, _, same = await ask(other)
        assert (again.source.kind, same) == ("cache", text)
        private = await stage.ask(other, QUESTION + " Indeed?", visibility="private")
        assert private.started.source.kind == "engine"

        # Nobody outside has a readable copy: not in memory of caches, not on disk.
        record = (await asked.stores.completions.get(started.completion_id)).signed.record
        assert not await outside.stores.records.holds(record.digest())
        for number in await sealed_at(stage):
            path = stage.network.peers[number].settled.config.data_dir / "sealed.sqlite"
            raw = b"".join(file.read_bytes() for file in path.parent.glob("sealed.sqlite*"))
            assert text.encode() not in raw
            assert QUESTION.encode() not in raw
            assert record.salt not in raw
        data_dir = stage.network.peers[3].settled.config.data_dir
        assert not [f for f in data_dir.rglob("*") if f.is_file() and QUESTION.encode() in f.read_bytes()]
        with pytest.raises(InvalidRequestError, match="no group 'lab'"):
            await ask(outside)

        # It can be had by its salted key, sealed; never in the clear.
        network, key = outside._world.network, record.key()
        holder = stage.peers[(await sealed_at(stage))[0]]
        peer_id = holder._world.network.peer_id
        if holder is not outside:
            assert await Fetcher(network).by_keys(peer_id, [key]) == ()
            envelope = await want(network, peer_id, key)
            assert envelope.leaf.record == record.digest()
            assert await outside.parts.scopes.open(envelope.envelope.sealed) is None
        public = await stage.ask(asked, QUESTION)
        assert public.started.source.kind == "engine", "what a group asked stands in for nobody else's question"

    on_stage(play)


def test_like_questions_are_found_within_the_group_without_showing_an_embedding(on_stage, monkeypatch) -> None:
    async def play(stage) -> None:
        join(stage, 0, 1, 2)
        asked, other = stage.peers[:2]
        started, _, _ = await ask(asked)
        await receipt(stage, asked, started)
        await trio.sleep(60)
        scope = await other.parts.scopes.named("lab")
        record = (await asked.stores.completions.get(started.completion_id)).signed.record
        near = await scope.cache.near(
            replace(record.request, messages=(Message(role="user", content="x"),)), record.embedding
        )
        assert [one.certified.leaf.record for one in near] == [record.digest()], "a validator of the group keeps it"
        assert await scope.cache.remote_near(record.request, record.embedding) == ()
        public = await other.parts.cache.near(record.request, record.embedding)
        assert public == ()

    on_stage(play)


def test_a_group_of_too_few_validators_is_told_that_nothing_can_be_certified(on_stage) -> None:
    async def play(stage) -> None:
        join(stage, 0, 1)
        asked, other = stage.peers[:2]
        started, finished, _ = await ask(asked)
        assert finished.publication == "pending"
        status = await receipt(stage, asked, started, "none")
        assert "2 of 4 validators are not in the group; 3 must be" in status.detail
        again, _, _ = await ask(other)
        assert again.source.kind == "engine", "what is not certified is shared with nobody"
        assert await sealed_at(stage) == []

    on_stage(play)


def test_groups_do_not_see_each_other_and_one_peer_can_be_in_several(on_stage) -> None:
    async def play(stage) -> None:
        join(stage, 0, 1, 2)
        join(stage, 1, 2, 3, name="club", key=bytes(32))
        first, _, _ = await ask(stage.peers[0])
        await receipt(stage, stage.peers[0], first)
        await trio.sleep(60)
        apart, _, _ = await ask(stage.peers[1], group="club")
        assert apart.source.kind == "engine"
        assert (await ask(stage.peers[1]))[0].source.kind == "cache"
        with pytest.raises(InvalidRequestError, match="no group is named"):
            await ask(stage.peers[1], group="")
        alone, _, _ = await ask(stage.peers[3], group="")
        assert alone.group == "club", "the only one needs no name"
        folder_of(stage, 1).leave("club")
        assert (await ask(stage.peers[1], group=""))[0].group == "lab", "a running peer learns that it left"

    on_stage(play)


def test_a_member_that_does_not_validate_gets_answers_by_the_salted_key(on_stage) -> None:
    async def play(stage) -> None:
        join(stage, 0, 1, 2)
        started, _, text = await ask(stage.peers[0])
        await receipt(stage, stage.peers[0], started)
        await trio.sleep(60)
        late = stage.peers[3]
        join(stage, 3)  # after the record was made: it has seen nothing of it
        again, _, same = await ask(late)
        assert (again.source.kind, same) == ("cache", text)
        scope = await late.parts.scopes.named("lab")
        record = (await stage.peers[0].stores.completions.get(started.completion_id)).signed.record.digest()
        assert await scope.cache._store.holds(record), "and keeps what it found"

    on_stage(play)


def test_a_group_record_is_revoked_like_any_other(on_stage) -> None:
    async def play(stage) -> None:
        join(stage, 0, 1, 2)
        asked = stage.peers[0]
        started, _, _ = await ask(asked)
        await receipt(stage, asked, started)
        await trio.sleep(60)
        record = (await asked.stores.completions.get(started.completion_id)).signed.record.digest()
        motion = hex0x(await asked.propose_motion(Wish("retract", record=hex0x(record))))
        for peer in stage.peers[1:3]:
            await stage.until(lambda peer=peer: bool(peer.ledger.motions()))
            await peer.approve_motion(motion[:18])
        await stage.until(lambda: all(p.parts.context.retracted_at(record) is not None for p in stage.peers))
        await trio.sleep(1)
        assert await sealed_at(stage) == []
        for number in (0, 1, 2):
            scope = await stage.peers[number].parts.scopes.named("lab")
            assert not await scope.cache._store.holds(record)
        assert (await ask(stage.peers[1]))[0].source.kind == "engine"
        assert (await asked.removals(hex0x(record)))["complete"] is True

    on_stage(play)


def test_a_restarted_peer_publishes_on_and_a_validator_outside_says_so(on_stage) -> None:
    async def play(stage) -> None:
        join(stage, 0, 1, 2)
        asked, outside = stage.peers[0], stage.peers[3]
        started, _, _ = await ask(asked)
        record = (await asked.stores.completions.get(started.completion_id)).signed
        scope = await asked.parts.scopes.named("lab")
        assert await scope.submissions.submit(outside._world.network.peer_id, record) == NOT_IN_GROUP
        stage.network.stop(0)
        await trio.sleep(1)
        await stage.start(0)
        back = stage.network.peers[0].peer
        await receipt(stage, back, started)

    on_stage(play)


# The folder


def test_keys_are_private_files_and_invites_carry_them(tmp_path) -> None:
    one, other = GroupFolder(tmp_path / "one"), GroupFolder(tmp_path / "other")
    for folder in (one, other):
        folder.path.parent.mkdir()
    assert one.load() == ()
    made = one.create("lab", KEY, 50)
    (file,) = one.path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o700
    assert KEY.hex() not in repr(made)
    joined = other.join(group_invite(made) + "\n", "theirs")
    assert (joined.key, joined.pad_ms, joined.name) == (KEY, 50, "theirs")
    assert [group.name for group in other.load()] == ["theirs"]
    stamp = other.stamp()
    other.leave("theirs")
    assert other.stamp() != stamp
    assert other.load() == ()


def test_what_is_no_group_is_refused_with_what_to_do(tmp_path) -> None:
    folder = GroupFolder(tmp_path)
    folder.create("lab", KEY)
    refused = {
        "taken": (lambda: folder.create("lab", bytes(32)), "there is a group 'lab' here"),
        "name": (lambda: folder.create("../lab", bytes(32)), "no name of a group"),
        "twice": (lambda: folder.join(group_invite(folder.named("lab")), "again"), "already, as 'lab'"),
        "nobody": (lambda: folder.leave("club"), "there is lab"),
        "no invite": (lambda: folder.join("nsllm-invite:abc"), "16 characters that are no invite"),
        "half a key": (lambda: folder.join(f"nsllm-group:lab:{KEY.hex()[:20]}:0"), "no invite of a group"),
        "padding": (lambda: parse_group_invite(f"nsllm-group:lab:{KEY.hex()}:{MAX_PAD_MS + 1}"), "cannot be padded"),
    }
    for name, (attempt, reason) in refused.items():
        with pytest.raises(UsageError, match=reason) as caught:
            attempt()
        assert KEY.hex()[:20] not in str(caught.value), name
    (folder.path / "odd.key").write_text("nonsense")
    with pytest.raises(UsageError, match=r"odd\.key holds no group's key"):
        folder.load()
