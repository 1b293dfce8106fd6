"""Copies come back by themselves: to holders that lack them, to stand-ins, to newcomers; no faster than allowed."""

from __future__ import annotations

import pytest
import trio

from nsllm import canonical
from nsllm.cache_dht.sealed_store import SealedStore
from nsllm.cache_dht.store import RecordStore
from nsllm.node import stocktaking as module
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.stocktaking import Stocktaking
from nsllm.p2p.errors import MisbehaviourError, RefusedError, UnreachableError
from nsllm.p2p.protocols.stock import Shelf

from .test_federated_cache import FakeNetwork


class Town:
    """Four members that take stock of each other without a network between."""

    def __init__(self, cast) -> None:
        self.cast = cast
        self.pushed: list[tuple[float, int, int]] = []
        """When, to whom, bytes."""
        self.away: set[int] = set()
        self.refuses: set[int] = set()
        self.asked: list[tuple[float, int]] = []
        self.parts = [Part(self, number) for number in range(len(cast.identities))]

    def of(self, peer):
        return next(part for part in self.parts if part.peer == peer)

    async def have(self, digest) -> list[int]:
        return [part.number for part in self.parts if await part.records.holds(digest)]

    def line(self, certified) -> list[list[int]]:
        """Numbers of the members in line for both shards of a record."""
        first = self.parts[0].cache
        numbers = {part.address: part.number for part in self.parts}
        shards = module_shards(certified, self.cast)
        return [[numbers[address] for address in first.holders.line(shard)] for shard in shards]


def module_shards(certified, cast):
    from nsllm.cache_dht.placement import shards_of

    count = cast.context.genesis.placement.shards
    return shards_of(certified.signed.record, certified.leaf.request_key, count)


class Part:
    def __init__(self, town: Town, number: int) -> None:
        import dataclasses

        self.town, self.number = town, number
        identity = town.cast.identities[number]
        self.address, self.peer = identity.address, identity.peer_id
        context = dataclasses.replace(town.cast.context, key=identity.member)
        self.records = RecordStore.open(None, context.clock, context.offload)
        self.envelopes = SealedStore.open(None, context.clock, context.offload)
        others = tuple(sorted(i.peer_id for i in town.cast.identities if i.address != self.address))
        self.cache = FederatedCache(
            context=context, store=self.records, network=FakeNetwork(self.peer, others), shelves=self
        )
        self.stocktaking = Stocktaking(
            context=context, records=self.records, envelopes=self.envelopes, cache=self.cache, links=self
        )

    def peer_of(self, member):
        return next((i.peer_id for i in self.town.cast.identities if i.address == member), None)

    def reached(self, holder) -> Part:
        part = self.town.of(holder)
        self.town.asked.append((trio.current_time(), part.number))
        if part.number in self.town.away:
            raise UnreachableError(f"{holder} is away")
        return part

    async def compare(self, holder, shelves):
        differing = await self.reached(holder).stocktaking.differing(shelves)
        return [shelves[at] for at in differing]

    async def lacking(self, holder, records):
        return await self.reached(holder).stocktaking.lacking(records)

    async def push(self, holder, certified):
        part = self.reached(holder)
        if part.number in self.town.refuses:
            raise RefusedError("cannot store it now")
        self.town.pushed.append((trio.current_time(), part.number, len(canonical.encode(certified))))
        await part.cache.hold(certified)


@pytest.fixture
def town(cast) -> Town:
    return Town(cast)


async def run(town: Town, nursery, *numbers: int) -> None:
    for number in numbers:
        nursery.start_soon(town.parts[number].stocktaking.run)


async def test_holders_that_lack_a_record_get_it_and_only_once(cast, town, autojump_clock, nursery) -> None:
    certified = cast.certified(cast.record("question", by=1))
    named = {number for line in town.line(certified) for number in line[:2]}
    source = next(iter(named))
    await town.parts[source].cache.hold(certified)
    await run(town, nursery, *range(4))
    await trio.sleep(300)
    assert set(await town.have(certified.leaf.record)) == named
    assert len(town.pushed) == len(named) - 1
    assert cast.kinds().count("copies_given") >= 1


async def test_the_next_in_line_stands_in_for_who_is_away_and_who_comes_back_is_a_holder_again(
    cast, town, autojump_clock, nursery
) -> None:
    certified = cast.certified(cast.record("question", by=1))
    line = town.line(certified)[0]
    await town.parts[line[0]].cache.hold(certified)
    town.away = {line[1]}
    await run(town, nursery, line[0])
    await trio.sleep(module.START_AFTER_S * 1.2 + module.AWAY_S - 1)
    assert line[2] not in await town.have(certified.leaf.record), "a restart is no reason to copy"
    await trio.sleep(2 * module.LOOK_S * 1.2 + 1)
    assert line[2] in await town.have(certified.leaf.record)
    town.away = set()
    await trio.sleep(2 * module.LOOK_S * 1.2)
    assert line[1] in await town.have(certified.leaf.record)


async def test_who_is_away_and_not_connected_is_tried_seldom(cast, town, autojump_clock, nursery) -> None:
    certified = cast.certified(cast.record("question", by=1))
    line = town.line(certified)[0]
    part = town.parts[line[0]]
    await part.cache.hold(certified)
    town.away = {line[1]}
    part.cache._network.neighbours = tuple(
        peer for peer in part.cache._network.neighbours if peer != town.parts[line[1]].peer
    )
    await run(town, nursery, line[0])
    await trio.sleep(module.START_AFTER_S * 1.2 + module.AWAY_S + 2 * module.LOOK_S)
    town.asked.clear()
    await trio.sleep(3 * module.AWAY_AGAIN_S)
    assert 2 <= len([number for _, number in town.asked if number == line[1]]) <= 3


async def test_nothing_is_sent_faster_than_allowed(cast, town, autojump_clock, nursery, monkeypatch) -> None:
    monkeypatch.setattr(module, "BYTES_PER_S", 1000)
    records = [cast.certified(cast.record(f"question {number}", by=1)) for number in range(30)]
    for certified in records:
        await town.parts[0].cache.hold(certified, check_placement=False)
    await run(town, nursery, 0)
    await trio.sleep(900)
    assert len(town.pushed) > 10
    first_s = town.pushed[0][0]
    sent = 0
    for at_s, _, size in town.pushed:
        assert sent <= 1000 * (at_s - first_s) + 1, "each waits until what went before is paid for"
        sent += size


async def test_a_full_store_lacks_nothing(cast, town, autojump_clock, nursery) -> None:
    certified = cast.certified(cast.record("question", by=1))
    part = town.parts[0]
    assert await part.stocktaking.lacking([certified.leaf.record] * 2) == (certified.leaf.record,)
    part.records._max_bytes = 1
    part.records._bytes = 1
    assert part.records.crowded
    assert await part.stocktaking.lacking([certified.leaf.record]) == ()


async def test_a_revoked_record_is_lacked_by_nobody(cast, town, monkeypatch) -> None:
    certified = cast.certified(cast.record("question", by=1))
    monkeypatch.setattr(type(cast.context), "retracted_at", lambda _self, record: 3)
    assert await town.parts[0].stocktaking.lacking([certified.leaf.record]) == ()


async def test_stocks_are_compared_shard_by_shard(cast, town, autojump_clock) -> None:
    certified = cast.certified(cast.record("question", by=1))
    one, other = (town.parts[number] for number in (0, 1))
    await one.cache.hold(certified, check_placement=False)
    await one.stocktaking.differing([])
    shards = module_shards(certified, cast)
    shelves = [
        Shelf(space=shard.space, number=shard.number, stock=one.stocktaking._catalogue.stock(shard)) for shard in shards
    ]
    assert await one.stocktaking.differing(shelves) == ()
    assert await other.stocktaking.differing(shelves) == (0, 1)
    await other.cache.hold(certified, check_placement=False)
    assert await other.stocktaking.differing(shelves) == ()


async def test_who_refuses_is_not_away_and_who_lies_costs_nobody_else(cast, town, autojump_clock, nursery) -> None:
    certified = cast.certified(cast.record("question", by=1))
    line = town.line(certified)[0]
    await town.parts[line[0]].cache.hold(certified)
    town.refuses = {line[1]}

    async def lies(_records):
        raise MisbehaviourError("lacks what it was not offered")

    await run(town, nursery, line[0])
    await trio.sleep(3 * module.AWAY_S)
    assert line[1] not in town.parts[line[0]].stocktaking._silent
    assert line[2] not in await town.have(certified.leaf.record) or line[2] in town.line(certified)[1][:2]
