"""A certified record is looked after until its holders have it, whatever they say, within bounds."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import trio

from nsllm.cache_dht.errors import StoreError
from nsllm.governance.errors import StorageError
from nsllm.node import keeper as module
from nsllm.node.keeper import Keeper
from nsllm.node.scope import Scope
from nsllm.p2p.errors import DeadlineError


class World:
    """Ledger, holders and their shelves around a keeper."""

    def __init__(self, cast) -> None:
        self.cast = cast
        self.shelves: dict[str, object] = {}
        self.pushes: list[tuple[float, str]] = []
        self.push_fails: dict[str, Exception] = {}
        self.held: list[bytes] = []
        self.hold_fails: list[Exception] = []
        self.disk_fails: list[Exception] = []
        self.first = 0
        """The first of the holders; we are 0."""
        self.keeper = Keeper(context=cast.context, proofs=self, scope_of=lambda _signed: Scope(None, self, self, self))

    async def wait_certified(self, signed):
        await trio.lowlevel.checkpoint()
        if self.disk_fails:
            raise self.disk_fails.pop()
        return self.cast.certified(signed)

    def holders_of_record(self, certified):
        return tuple(identity.address for identity in self.cast.identities[self.first : self.first + 3])

    async def hold(self, certified, *, check_placement=True):
        if self.hold_fails:
            raise self.hold_fails.pop()
        self.held.append(certified.leaf.record)

    def peer_of(self, member):
        return next((i.peer_id for i in self.cast.identities if i.address == member), None)

    async def fetch(self, holder, key):
        await trio.lowlevel.checkpoint()
        found = self.shelves.get(holder)
        if isinstance(found, Exception):
            raise found
        return found

    async def push(self, holder, certified):
        self.pushes.append((trio.current_time(), holder))
        if holder in self.push_fails:
            raise self.push_fails[holder]
        self.shelves[holder] = certified


@pytest.fixture
async def world(cast, autojump_clock, nursery) -> World:
    world = World(cast)
    nursery.start_soon(world.keeper.run)
    return world


async def test_what_every_holder_has_is_left_alone(cast, autojump_clock, world) -> None:
    signed = cast.record()
    for identity in cast.identities[1:3]:
        world.shelves[identity.peer_id] = cast.certified(signed)
    world.keeper.keep(signed)
    assert world.keeper.kept() == 1
    await trio.sleep(60)
    assert world.pushes == []
    assert world.held == [signed.record.digest()]
    assert world.keeper.kept() == 0


async def test_what_is_missing_is_pushed_after_the_generators_time(cast, autojump_clock, world) -> None:
    signed = cast.record()
    world.shelves[cast.identities[1].peer_id] = cast.certified(signed)
    world.keeper.keep(signed)
    await trio.sleep(60)
    ((at, holder),) = world.pushes
    assert holder == cast.identities[2].peer_id
    assert at >= module.FIRST_LOOK_S
    assert "record_repaired" in cast.kinds()


async def test_another_answer_to_the_request_is_not_this_record(cast, autojump_clock, world) -> None:
    signed = cast.record()
    other = cast.certified(cast.record(by=2, text="another answer"))
    for identity in cast.identities[1:3]:
        world.shelves[identity.peer_id] = other
    world.keeper.keep(signed)
    await trio.sleep(600)
    assert sorted(holder for _, holder in world.pushes) == sorted(i.peer_id for i in cast.identities[1:3])


async def test_a_holder_that_is_away_is_tried_ever_more_seldom_and_then_given_up(cast, autojump_clock, world) -> None:
    away = cast.identities[1].peer_id
    world.shelves[away] = DeadlineError("silent")
    world.push_fails[away] = DeadlineError("silent")
    world.keeper.keep(cast.record())
    await trio.sleep(2_000)
    times = [at for at, holder in world.pushes if holder == away]
    assert len(times) == module.LOOKS
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == sorted(pauses)
    assert world.keeper.kept() == 0
    assert [holder for _, holder in world.pushes].count(cast.identities[2].peer_id) == 1


async def test_a_record_that_no_holder_takes_stays_on_our_own_shelf(cast, autojump_clock, world) -> None:
    world.first = 1
    for identity in cast.identities[1:4]:
        world.shelves[identity.peer_id] = world.push_fails[identity.peer_id] = DeadlineError("silent")
    lost, found = cast.record("first"), cast.record("second")
    world.hold_fails = [StoreError("record store: disk is full")]
    world.keeper.keep(lost)
    await trio.sleep(2_000)
    assert world.held == [lost.record.digest()]
    one = cast.identities[1].peer_id
    del world.shelves[one], world.push_fails[one]
    world.keeper.keep(found)
    await trio.sleep(2_000)
    assert world.held == [lost.record.digest()]  # one holder has it: it is theirs to give on


async def test_trouble_with_our_own_disk_does_not_stop_the_keeper(cast, autojump_clock, world) -> None:
    world.disk_fails = [StorageError("ledger: disk is full")]
    world.keeper.keep(cast.record("first"))
    await trio.sleep(1)
    assert world.keeper.kept() == 0
    world.hold_fails = [StoreError("record store: disk is full")]
    second = cast.record("second")
    world.keeper.keep(second)
    await trio.sleep(200)
    assert world.held == [second.record.digest()]
    assert world.keeper.kept() == 0


async def test_what_is_kept_is_bounded_by_number_and_by_size(cast, autojump_clock, world, monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT_LIMIT", 3)
    for number in range(5):
        world.keeper.keep(cast.record(f"question {number}"))
    await trio.sleep(0.1)
    assert world.keeper.kept() == 3
    await trio.sleep(2_000)
    assert world.keeper.kept() == 0
    monkeypatch.setattr(module, "KEPT_BYTES", 3_000)
    for number in range(5):
        world.keeper.keep(cast.record(f"large {number}", text="x" * 1_500))
    assert world.keeper.kept() == 1


def test_turns_differ_between_records_and_cover_all_validators(cast) -> None:
    keeper = World(cast).keeper
    turns = set()
    for number in range(40):
        certified = cast.certified(cast.record(f"question {number}"))
        turns.add(keeper._turn(certified))
        assert keeper._turn(certified) == keeper._turn(msgspec.structs.replace(certified))
    assert turns == {0, 1, 2, 3}
