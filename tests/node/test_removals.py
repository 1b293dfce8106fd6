"""Revoked records on whole simulated networks: deleted everywhere, served by nobody, proved by their holders."""

from __future__ import annotations

import pytest
import trio

from nsllm import canonical
from nsllm.cache_dht.removal import SignedRemoval
from nsllm.governance.verify import verify_receipt
from nsllm.ids import hex0x
from nsllm.node.service import Wish
from nsllm.p2p.errors import RefusedError
from nsllm.p2p.protocols.removal import ask_removal
from nsllm.record import Sampling

QUESTION = "Why do leaves fall?"


async def certified(stage, peer, question=QUESTION):
    answer = await stage.ask(peer, question)
    await stage.anchored(peer, answer)
    await trio.sleep(30)
    completion = await peer.stores.completions.get(answer.started.completion_id)
    return answer, completion.signed.record.digest()


async def retract(stage, record, on=None):
    first, *others = on or stage.peers
    motion = hex0x(await first.propose_motion(Wish("retract", record=hex0x(record))))
    network = first.parts.context.network_id
    for peer in others[:2]:
        heard = lambda peer=peer: any(hex0x(t.motion.digest(network)) == motion for t in peer.ledger.motions())  # noqa: E731
        await stage.until(heard)
        await peer.approve_motion(motion[:18])
    await stage.until(lambda: all(p.parts.context.retracted_at(record) is not None for p in on or stage.peers))


async def holding(stage, record):
    return [number for number, p in enumerate(stage.peers) if await p.stores.records.holds(record)]


def test_a_revoked_record_is_gone_from_every_holder_who_each_prove_it(on_stage) -> None:
    async def play(stage) -> None:
        asked, other = stage.peers[0], stage.peers[1]
        before = stage.peers[0].parts.context.genesis
        answer, record = await certified(stage, asked)
        assert await holding(stage, record)
        hit = await stage.ask(other, QUESTION)
        assert hit.started.source.kind == "cache"

        await retract(stage, record)
        await trio.sleep(1)
        assert await holding(stage, record) == []
        height = asked.parts.context.retracted_at(record)
        for peer in stage.peers:  # exact, from the own store or another's
            again = await stage.ask(peer, QUESTION, visibility="private")
            assert again.started.source.kind == "engine"

        view = await asked.removals(hex0x(record))
        assert view["complete"] is True
        assert view["revoked_height"] == height
        assert [row["verdict"] for row in view["holders"]] == ["removed"] * 4
        for row in view["holders"]:
            said = canonical.from_json(row["statement"], SignedRemoval, limit_bytes=4096)
            said.check(before.network_id(), record, height)
            assert hex0x(said.removal.holder) == row["holder"]

        for completion in (answer.started.completion_id, hit.started.completion_id):
            status = await (asked if completion == answer.started.completion_id else other).receipt(completion)
            assert status.revoked_height == height
            assert verify_receipt(status.receipt_json, before).revoked_height == height
        standing = await other.standing(hex0x(record))
        assert (standing["state"], standing["revoked_height"]) == ("revoked", height)
        unknown = await other.standing(hex0x(bytes(32)))
        assert (unknown["state"], unknown["retraction"]) == ("unknown", None)

    on_stage(play)


def test_a_holder_that_still_serves_it_convinces_nobody_and_is_found_out(on_stage) -> None:
    async def play(stage) -> None:
        asked = stage.peers[0]
        _, record = await certified(stage, asked)
        holders = await holding(stage, record)
        stale = next(stage.peers[number] for number in holders if number != 0)
        kept = await stale.stores.records.by_digest(record)

        async def nothing(_records):
            return ()

        async def denies(_record):
            return False

        stale.stores.records.erase, stale.stores.records.holds = nothing, denies
        stale.parts.cache._stands = lambda _certified: True
        stale.parts.cache._checked = lambda certified, _key, holder: None
        await retract(stage, record)
        await trio.sleep(1)

        key, embedding = kept.leaf.request_key, kept.signed.record.embedding
        assert await stale.parts.cache.lookup(key, member=True) == kept, "it serves on"
        refused = asked.parts.cache.counters.refused
        shelves = asked.parts.cache._shelves
        assert await shelves.fetch(stale.parts.context.registry.get(stale.parts.context.address).peer_id, key) == kept
        found = asked.parts.cache._checked(kept, key, None)
        assert found is None
        assert asked.parts.cache.counters.refused == refused + 1
        near = await asked.parts.cache.remote_near(kept.signed.record.request, embedding)
        assert all(asked.parts.cache.verified(one) is None for one in near if one.certified.leaf.record == record)
        again = await stage.ask(asked, QUESTION, sampling=Sampling())
        assert again.started.source.kind == "engine"

        view = await asked.removals(hex0x(record))
        verdicts = {row["holder"]: row["verdict"] for row in view["holders"]}
        assert verdicts.pop(hex0x(stale.parts.context.address)) == "serves it"
        assert set(verdicts.values()) == {"removed"}
        assert view["complete"] is False
        # Nor does it come back by a push.
        assert "revoked at height" in await asked.parts._hold(kept, stale.parts.context.registry.members()[0])
        assert not await asked.stores.records.holds(record)

    on_stage(play)


def test_a_holder_that_was_away_deletes_when_it_has_caught_up(on_stage) -> None:
    async def play(stage) -> None:
        asked = stage.peers[0]
        _, record = await certified(stage, asked)
        away = next(number for number in await holding(stage, record) if number != 0)
        stage.network.stop(away)
        await trio.sleep(1)
        await retract(stage, record)
        view = await asked.removals(hex0x(record))
        assert view["complete"] is False
        assert sorted(row["verdict"] for row in view["holders"]) == ["no proof", "removed", "removed", "removed"]
        await stage.start(away)
        back = stage.network.peers[away].peer
        await stage.until(lambda: back.parts.context.retracted_at(record) is not None)
        await trio.sleep(60)
        assert not await back.stores.records.holds(record)
        assert (await asked.removals(hex0x(record)))["complete"] is True

    on_stage(play)


def test_nobody_proves_what_was_not_revoked(on_stage) -> None:
    async def play(stage) -> None:
        asked, other = stage.peers[:2]
        _, record = await certified(stage, asked)
        view = await asked.removals(hex0x(record))
        assert (view["revoked_height"], view["complete"], view["holders"]) == (None, False, [])
        said = await other.parts.removals.prove(record)
        assert "is not revoked as of height" in said
        peer = other.parts.context.registry.get(other.parts.context.address).peer_id
        with pytest.raises(RefusedError, match="is not revoked"):
            await ask_removal(asked._world.network, peer, record)

    on_stage(play)
