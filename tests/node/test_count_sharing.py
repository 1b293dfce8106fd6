"""What one peer observed of public questions reaches the others, once and in bounds; what is private does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from nsllm.cache_dht.observation_store import ObservationStore
from nsllm.cache_dht.observations import BINS, UNSHARED, Tally
from nsllm.node import count_sharing as module
from nsllm.node.count_sharing import CountSharing
from nsllm.p2p.errors import UnreachableError
from nsllm.p2p.protocols.counts import CountRow

COUNTS = tuple(range(2 * BINS))


class Sharer:
    def __init__(self, cast, members=("one", "two")) -> None:
        self.own, self.told, self.gone = cast.context.address, [], set()
        self.store, self.tally, self.members = ObservationStore.open(None), Tally(), list(members)
        self.sharing = CountSharing(
            context=cast.context,
            observations=self.store,
            merge=self.tally.merge,
            links=self,
            members=lambda: self.members,
        )

    async def tell_counts(self, peer, rows):
        await trio.lowlevel.checkpoint()
        if peer in self.gone:
            raise UnreachableError("gone")
        self.told.append((peer, [row.place for row in rows]))

    def observe(self, *places, observer=None):
        self.store.keep(observer or self.own, [(place, COUNTS) for place in places])
        self.sharing.changed()


@pytest.fixture
async def sharer(cast, nursery, autojump_clock) -> Sharer:
    sharer = Sharer(cast)
    nursery.start_soon(sharer.sharing.run)
    return sharer


async def test_only_what_changed_is_told_and_nothing_without_a_change(autojump_clock, sharer) -> None:
    await trio.sleep(3600)
    assert sharer.told == []
    sharer.observe(b"a", b"b")
    sharer.observe(b"secret", observer=UNSHARED)
    await trio.sleep(60)
    assert sharer.told == [("one", [b"a", b"b"]), ("two", [b"a", b"b"])]
    sharer.observe(b"b")
    await trio.sleep(60)
    assert sharer.told[2:] == [("one", [b"b"]), ("two", [b"b"])]
    await trio.sleep(3600)
    assert len(sharer.told) == 4


async def test_who_was_away_hears_all_of_it_later(autojump_clock, sharer) -> None:
    sharer.gone.add("two")
    sharer.observe(b"a")
    await trio.sleep(60)
    sharer.gone.clear()
    sharer.members.append("three")
    sharer.observe(b"b")
    await trio.sleep(60)
    assert sharer.told == [("one", [b"a"]), ("one", [b"b"]), ("two", [b"a", b"b"]), ("three", [b"a", b"b"])]


async def test_much_is_told_in_pages(autojump_clock, sharer, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 4)
    sharer.members.remove("two")
    for number in range(4):
        sharer.observe(*(bytes([number, place]) for place in range(3)))
    await trio.sleep(60)
    assert {place for _, places in sharer.told for place in places} == {
        bytes([number, place]) for number in range(4) for place in range(3)
    }
    assert all(len(places) <= 4 for _, places in sharer.told)


async def test_what_others_tell_is_learned_and_kept_up_to_a_bound(autojump_clock, sharer, cast, monkeypatch) -> None:
    member = SimpleNamespace(address=cast.identities[1].address)
    rows = [CountRow(place=bytes([number]), counts=COUNTS) for number in range(200)]
    assert await sharer.sharing.hear(rows, member) is None
    assert tuple(sharer.tally.counters[member.address, bytes([7])]) == COUNTS
    assert len(list(sharer.store.load().rows())) == 200
    for _ in range(19):
        assert await sharer.sharing.hear(rows, member) is None
    assert "more than 4096" in await sharer.sharing.hear(rows, member)
    await trio.sleep(module.PERIOD_S)
    assert await sharer.sharing.hear(rows, member) is None
    assert sharer.told == []  # what was heard is nobody's to pass on


def test_peers_learn_from_each_other(on_stage, monkeypatch) -> None:
    monkeypatch.setattr("nsllm.cache_dht.reuse.AUDIT", 1.0)

    async def play(stage) -> None:
        one, other = stage.peers
        first = await stage.ask(one, "Why do tides rise and fall along the coast?", visibility="public")
        await stage.anchored(one, first)
        await stage.ask(one, "why do tides rise and fall along the coast", visibility="public")
        await stage.until(lambda: one.parts.near.counters.right + one.parts.near.counters.wrong > 0)
        address = one.parts.context.address
        heard = lambda: {place for observer, place, _ in other.stores.observations.load().rows() if observer == address}  # noqa: E731
        await stage.until(lambda: len(heard()) == 3)
        assert not any(b"tides" in place for place in heard())
        await stage.ask(one, "why do tides fall and rise along the coast", visibility="private")
        await trio.sleep(120)
        assert UNSHARED not in {observer for observer, _, _ in other.stores.observations.load().rows()}

    on_stage(play, peers=2)
