"""A record's life at its generator: offered until certified or expired, pushed until held, through own faults."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm.errors import OwnFault
from nsllm.governance.errors import MissedError, StorageError
from nsllm.node import publisher as module
from nsllm.node.completions import Completions
from nsllm.node.publisher import Publisher
from nsllm.node.scope import Scope
from nsllm.p2p.errors import DeadlineError, RefusedError


class World:
    """Everything around a publisher: validators' answers, holders' answers, the ledger."""

    def __init__(self, cast, completions: Completions) -> None:
        self.cast = cast
        self.completions = completions
        self.offered: list[tuple[float, str, bytes]] = []
        self.verdicts: dict[str, object] = {}
        self.pushed: list[tuple[float, str]] = []
        self.push_fails: dict[str, list[Exception]] = {}
        self.held: list[bytes] = []
        self.certified: dict[bytes, trio.Event] = {}
        self.disk_fails: list[Exception] = []
        self.missed = False
        self.shelf = None
        self.given_by: dict[str, object] = {}
        self.asked: list[tuple[float, str]] = []
        self.publisher = Publisher(
            context=cast.context,
            completions=completions,
            proofs=self,
            scope_of=lambda _signed: Scope(None, self, self, self),
            examiner=self,
        )

    # ledger
    async def wait_certified(self, signed):
        if self.missed:
            raise MissedError("it was settled while this peer was far behind")
        await self.certified.setdefault(signed.record.digest(), trio.Event()).wait()
        if self.disk_fails:
            raise self.disk_fails.pop()
        return self.cast.certified(signed)

    def certify(self, signed) -> None:
        self.certified.setdefault(signed.record.digest(), trio.Event()).set()

    # submissions and the examiner at home
    def accept(self, signed):
        return None

    async def submit(self, validator, signed):
        self.offered.append((trio.current_time(), validator, signed.record.digest()))
        verdict = self.verdicts.get(validator)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    # shelves and cache
    def peer_of(self, member):
        return next((i.peer_id for i in self.cast.identities if i.address == member), None)

    async def lookup(self, key, *, member):
        assert member
        return self.shelf

    async def peers_of(self, shard):
        return tuple(identity.peer_id for identity in self.cast.identities[1:])

    async def fetch(self, holder, key):
        self.asked.append((trio.current_time(), holder))
        found = self.given_by.get(holder)
        if isinstance(found, Exception):
            raise found
        return found

    async def push(self, holder, certified):
        self.pushed.append((trio.current_time(), holder))
        if self.push_fails.get(holder):
            raise self.push_fails[holder].pop(0)

    async def hold(self, certified):
        self.held.append(certified.leaf.record)

    def holders_of_record(self, certified):
        return tuple(identity.address for identity in self.cast.identities[:3])

    async def given(self, question: str = "why?"):
        signed = self.cast.record(question)
        await self.completions.add(f"id of {question}", "pending", "", signed, 1_000, own=True)
        return signed

    async def state(self, question: str = "why?"):
        completion = await self.completions.get(f"id of {question}")
        return completion.state, completion.detail


@pytest.fixture
async def world(cast, autojump_clock) -> World:
    completions = await Completions.open(None, cast.context.clock, cast.context.offload)
    return World(cast, completions)


async def test_a_record_is_offered_to_all_certified_and_pushed(cast, autojump_clock, world, nursery) -> None:
    nursery.start_soon(world.publisher.run)
    signed = await world.given()
    world.publisher.publish(signed)
    await trio.sleep(1)
    assert {validator for _, validator, _ in world.offered} == {i.peer_id for i in cast.identities[1:]}
    assert await world.state() == ("pending", "")
    assert world.publisher.pending() == 1
    world.certify(signed)
    await trio.sleep(1)
    assert await world.state() == ("certified", "")
    assert world.held == [signed.record.digest()]
    assert sorted(holder for _, holder in world.pushed) == sorted(i.peer_id for i in cast.identities[1:3])
    (spread,) = [event for event in cast.told if event.kind == "record_spread"]
    assert spread.fields["holders"] == 3
    assert world.publisher.pending() == 0


async def test_it_goes_on_where_the_last_run_stopped(cast, autojump_clock, world, nursery) -> None:
    signed = await world.given()
    nursery.start_soon(world.publisher.run)
    await trio.sleep(1)
    assert len(world.offered) == 3
    world.certify(signed)
    await trio.sleep(1)
    assert await world.state() == ("certified", "")


async def test_scores_of_a_block_that_was_never_here_are_asked_of_the_holders(
    cast, autojump_clock, world, nursery
) -> None:
    signed = await world.given()
    right = cast.certified(signed)
    world.missed = True
    silent, liar, other = (identity.peer_id for identity in cast.identities[1:])
    forged = replace(right, leaf=replace(right.leaf, observers=right.leaf.observers[:3]))
    world.given_by = {silent: DeadlineError("silent"), liar: forged, other: cast.certified(cast.record(by=1))}
    nursery.start_soon(world.publisher.run)
    await trio.sleep(40)
    assert world.asked == [(at, peer) for at in (0, 30) for peer in (silent, liar, other)]
    assert await world.state() == ("pending", "")
    world.given_by[other] = right
    await trio.sleep(30)
    assert await world.state() == ("certified", "")
    assert (await world.completions.get("id of why?")).scores == right.scores
    assert "scores_found" in cast.kinds()
    assert world.publisher.pending() == 0
    assert world.pushed == [], "they have it"


async def test_scores_on_our_own_shelf_are_found_there(cast, autojump_clock, world, nursery) -> None:
    signed = await world.given()
    world.missed, world.shelf = True, cast.certified(signed)
    nursery.start_soon(world.publisher.run)
    await trio.sleep(1)
    assert (await world.completions.get("id of why?")).scores == world.shelf.scores
    assert world.asked == []


async def test_where_no_holder_has_missed_scores_there_is_no_receipt(cast, autojump_clock, world, nursery) -> None:
    await world.given()
    world.missed = True
    nursery.start_soon(world.publisher.run)
    await trio.sleep(module.EXPIRY_S + 1)
    assert await world.state() == (
        "none",
        "it was settled while this peer was far behind, and none of its holders has it",
    )
    assert len(world.asked) == 3 * 20
    assert "record_unscored" in cast.kinds()


async def test_a_record_that_nobody_scores_expires(cast, autojump_clock, world, nursery) -> None:
    nursery.start_soon(world.publisher.run)
    world.publisher.publish(await world.given())
    await trio.sleep(module.EXPIRY_S + 1)
    state, detail = await world.state()
    assert state == "none"
    assert "expired" in detail
    assert "record_expired" in cast.kinds()
    offers = len(world.offered)
    await trio.sleep(120)
    assert len(world.offered) == offers
    assert world.publisher.pending() == 0


async def test_a_validator_that_took_it_is_offered_it_again_later_and_one_that_is_silent_sooner(
    cast, autojump_clock, world, nursery
) -> None:
    took, silent, refuses = (identity.peer_id for identity in cast.identities[1:])
    world.verdicts = {silent: DeadlineError("silent"), refuses: "desk is full"}
    nursery.start_soon(world.publisher.run)
    world.publisher.publish(await world.given())
    await trio.sleep(65)

    def offers(validator: str) -> list[int]:
        return [round(at) for at, to, _ in world.offered if to == validator]

    assert offers(took) == [0, 30, 60]
    assert offers(silent)[:4] == [0, 3, 6, 9]
    assert offers(refuses) == [0, 6, 18, 42]  # ever more seldom
    told = [event.fields for event in cast.told if event.kind == "submission_refused"]
    assert [fields["reason"] for fields in told] == ["desk is full"]  # said once
    world.verdicts[refuses] = "another reason"
    await trio.sleep(60)
    assert cast.kinds().count("submission_refused") == 2


async def test_a_holder_that_fails_is_tried_again_and_does_not_hold_up_the_others(
    cast, autojump_clock, world, nursery
) -> None:
    failing, steady = (identity.peer_id for identity in cast.identities[1:3])
    world.push_fails = {failing: [DeadlineError("busy")] * 2}
    nursery.start_soon(world.publisher.run)
    signed = await world.given()
    world.publisher.publish(signed)
    world.certify(signed)
    await trio.sleep(60)
    assert [round(at) for at, to in world.pushed if to == failing] == [0, 1, 3]
    assert [round(at) for at, to in world.pushed if to == steady] == [0]
    (spread,) = [event for event in cast.told if event.kind == "record_spread"]
    assert spread.fields["holders"] == 3


async def test_a_holder_that_refuses_is_not_pestered(cast, autojump_clock, world, nursery) -> None:
    refusing = cast.identities[1].peer_id
    world.push_fails = {refusing: [RefusedError("not my shard")] * 9}
    nursery.start_soon(world.publisher.run)
    signed = await world.given()
    world.publisher.publish(signed)
    world.certify(signed)
    await trio.sleep(60)
    assert [to for _, to in world.pushed].count(refusing) == 1
    (refused,) = [event for event in cast.told if event.kind == "push_refused"]
    assert refused.fields["reason"] == "not my shard"


@pytest.mark.parametrize("where", ["reading the ledger", "settling"])
async def test_a_full_disk_is_told_and_stops_neither_this_record_nor_the_others(
    cast, autojump_clock, world, nursery, monkeypatch, where: str
) -> None:
    full = StorageError("database or disk is full", hint="free some space")
    settle = world.completions.settle
    failures = [full] if where == "settling" else []
    world.disk_fails = [full] if where == "reading the ledger" else []

    async def settling(*args) -> None:
        if failures:
            raise failures.pop()
        await settle(*args)

    monkeypatch.setattr(world.completions, "settle", settling)
    nursery.start_soon(world.publisher.run)
    signed, other = await world.given("first"), await world.given("second")
    world.publisher.publish(signed)
    world.certify(signed)
    await trio.sleep(1)
    assert [e.fields["code"] for e in cast.told if e.kind == "publish_failed"] == ["storage_error"]
    world.publisher.publish(other)
    world.certify(other)
    await trio.sleep(1)
    assert await world.state("second") == ("certified", "")
    await trio.sleep(60)
    assert await world.state("first") == ("certified", "")


async def test_a_shelf_of_our_own_that_is_full_counts_as_a_holder_that_failed(
    cast, autojump_clock, world, nursery, monkeypatch
) -> None:
    async def full(_certified) -> None:
        raise OwnFault("record store: disk is full")

    monkeypatch.setattr(world, "hold", full)
    nursery.start_soon(world.publisher.run)
    signed = await world.given()
    world.publisher.publish(signed)
    world.certify(signed)
    await trio.sleep(60)
    (spread,) = [event for event in cast.told if event.kind == "record_spread"]
    assert spread.fields["holders"] == 2


async def test_beyond_the_limit_records_wait_on_disk_and_are_taken_up_in_their_turn(
    cast, autojump_clock, world, nursery, monkeypatch
) -> None:
    monkeypatch.setattr(module, "PENDING_LIMIT", 3)
    nursery.start_soon(world.publisher.run)
    await trio.sleep(0)
    records = [await world.given(f"question {number}") for number in range(8)]
    for signed in records:
        world.publisher.publish(signed)
        world.publisher.publish(signed)  # twice is once
    await trio.sleep(1)
    assert world.publisher.pending() == 3
    for signed in records:
        world.certify(signed)
    await trio.sleep(10)
    assert [(await world.state(f"question {number}"))[0] for number in range(8)] == ["certified"] * 8
