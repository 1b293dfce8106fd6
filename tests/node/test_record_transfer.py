"""Records travel between stores by file: all that verify arrive, and nothing else does."""

from __future__ import annotations

import msgspec
import pytest

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.store import RecordStore
from nsllm.ids import ZERO_DIGEST
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.record_transfer import RecordTransfer


class Alone:
    peer_id = "alone"

    def connected(self):
        return ()

    def peer_of(self, _member):
        return None


def transfer(cast, max_bytes: int | None = None) -> RecordTransfer:
    context = cast.context
    store = RecordStore.open(None, context.clock, context.offload, max_bytes=max_bytes)
    cache = FederatedCache(context=context, store=store, network=Alone(), shelves=Alone())
    return RecordTransfer(context=context, store=store, cache=cache)


async def test_all_that_one_peer_has_arrives_at_another(cast) -> None:
    records = [cast.certified(cast.record(f"question {number}")) for number in range(5)]
    one, other = transfer(cast), transfer(cast)
    brought = await one.bring([canonical.encode(record) for record in records])
    assert [row.outcome for row in brought] == ["stored"] * 5
    assert [row.record for row in brought] == [record.leaf.record for record in records]
    page = await one.page(None, 3)
    assert (page.records, len(page.rows), page.more) == (5, 3, True)
    rest = await one.page(page.last, 3)
    assert (len(rest.rows), rest.more) == (2, False)
    bodies = [body for _, body in (*page.rows, *rest.rows)]
    assert [row.outcome for row in await other.bring(bodies)] == ["stored"] * 5
    assert [row.outcome for row in await other.bring(bodies)] == ["known"] * 5
    assert await other._store.digests() == await one._store.digests()
    assert "records_brought" in cast.kinds()


async def test_what_does_not_verify_is_refused_and_named_and_the_others_arrive(cast) -> None:
    replace = msgspec.structs.replace
    good, another = cast.certified(cast.record("good?")), cast.certified(cast.record("another?"))
    changed = replace(good, signed=replace(good.signed, record=replace(good.signed.record, text="a lie")))
    bad = {
        "the score leaf": replace(good, leaf=another.leaf),
        "precommits": cast.certified(cast.record("uncertified?"), signers=2),
        "below the policy": cast.certified(cast.record("poor?"), ppm=300_000),
        "group": cast.certified(cast.record("ours?", visibility="group")),
        "scores under rubric": replace(good, leaf=replace(good.leaf, rubric=ZERO_DIGEST)),
    }
    shelf = transfer(cast)
    damaged = bytearray(canonical.encode(another))
    damaged[len(damaged) // 2] ^= 0xFF
    bodies = [canonical.encode(record) for record in (changed, *bad.values())]
    rows = await shelf.bring([*bodies, bytes(damaged), b"", canonical.encode(good)])
    assert [row.outcome for row in rows] == ["refused"] * (len(bodies) + 2) + ["stored"]
    assert all(row.reason for row in rows[:-1])
    assert rows[1].record == good.leaf.record
    for row, reason in zip(rows[1:], bad, strict=False):
        assert reason in row.reason
    assert await shelf._store.digests() == (good.leaf.record,)


async def test_what_was_revoked_goes_neither_way(cast, monkeypatch) -> None:
    record = cast.certified(cast.record())
    shelf = transfer(cast)
    assert [row.outcome for row in await shelf.bring([canonical.encode(record)])] == ["stored"]
    monkeypatch.setattr(type(cast.context), "retracted_at", lambda _self, _record: 7)
    assert (await shelf.page(None, 10)).rows == ()
    (row,) = await transfer(cast).bring([canonical.encode(record)])
    assert (row.outcome, row.record) == ("refused", record.leaf.record)
    assert "revoked at height 7" in row.reason


async def test_nothing_is_evicted_for_what_is_brought(cast) -> None:
    records = [canonical.encode(cast.certified(cast.record(f"question {number}"))) for number in range(9)]
    shelf = transfer(cast, max_bytes=8 * (max(map(len, records)) + 1024 + 8))
    with pytest.raises(StoreError, match="eighth of the record store is free") as refused:
        await shelf.bring(records)
    assert "cache.max_mb" in refused.value.hint
    assert 6 <= shelf._store.records <= 8


def test_what_a_network_certified_is_served_where_it_was_brought(on_stage) -> None:
    async def play(stage) -> None:
        one, other = stage.peers
        answer = await stage.ask(one, "Why is the sky blue?", visibility="public")
        await stage.anchored(one, answer)
        page = await one.records(None, 10)
        ((record, body),) = page.rows
        await other.stores.records.erase([record])
        known, stored = [(await peer.bring_records([body]))[0] for peer in (one, other)]
        assert (known.outcome, stored.outcome) == ("known", "stored")
        again = await stage.ask(other, "Why is the sky blue?", visibility="public")
        assert (again.started.source.kind, again.started.source.match) == ("cache", "exact")
        assert other.parts.cache.counters.hits_local == 1

    on_stage(play, peers=2)
