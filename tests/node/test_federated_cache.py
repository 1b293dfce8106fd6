"""Nothing is served unverified, whoever holds it; what a holder does wrong costs that holder, never the answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest
import trio

from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.placement import Shard
from nsllm.cache_dht.store import RecordStore
from nsllm.errors import PeerFault
from nsllm.node import federated_cache as module
from nsllm.node import holders as holders_module
from nsllm.node.federated_cache import FederatedCache
from nsllm.p2p.errors import DeadlineError, MisbehaviourError, UnreachableError


@dataclass
class FakeShelves:
    """Other members' stores: what each gives (a record, None, or an error), and after how long."""

    cast: object
    gives: dict[str, object] = field(default_factory=dict)
    takes_s: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def peer_of(self, member):
        return next((i.peer_id for i in self.cast.identities if i.address == member), None)

    async def fetch(self, holder, key):
        self.asked.append(holder)
        await trio.sleep(self.takes_s.get(holder, 0.01))
        given = self.gives.get(holder)
        if isinstance(given, Exception):
            raise given
        return given

    async def fetch_near(self, holder, embedding, count):
        self.asked.append(holder)
        given = self.gives.get(holder)
        if isinstance(given, Exception):
            raise given
        return [] if given is None else [given]

    async def push(self, holder, certified):
        raise UnreachableError("nobody")


@dataclass
class FakeNetwork:
    peer_id: str
    neighbours: tuple[str, ...]
    provided: list[tuple[float, bytes]] = field(default_factory=list)
    fails: Exception | None = None
    announced: tuple[str, ...] = ()

    def connected(self):
        return self.neighbours

    async def find_providers(self, key, limit=8):
        if self.fails is not None:
            raise self.fails
        return self.announced

    async def provide(self, key):
        await trio.sleep(0.1)
        if self.fails is not None:
            raise self.fails
        self.provided.append((trio.current_time(), key))


class Shelf:
    def __init__(self, cast) -> None:
        self.cast = cast
        self.store = RecordStore.open(None, cast.context.clock, cast.context.offload)
        others = tuple(sorted(identity.peer_id for identity in cast.identities[1:]))
        self.network = FakeNetwork(cast.identities[0].peer_id, others)
        self.shelves = FakeShelves(cast)
        self.cache = FederatedCache(context=cast.context, store=self.store, network=self.network, shelves=self.shelves)

    def question(self, *, held: bool) -> str:
        """A question whose key shard we hold, or do not."""
        numbers = (f"question {number}" for number in range(1000))
        return next(q for q in numbers if (self.cast.context.address in self.holders(q)) is held)

    def holders(self, question: str):
        shard = module.placement.key_shard(self.cast.key(question), self.cast.context.genesis.placement.shards)
        return self.cache.holders_of(shard)


@pytest.fixture
def shelf(cast) -> Shelf:
    return Shelf(cast)


def tampered(cast, question: str, how: str):
    good = cast.certified(cast.record(question, by=1))
    signed, certificate = good.signed, good.certificate
    replace = msgspec.structs.replace
    match how:
        case "text":
            return replace(good, signed=replace(signed, record=replace(signed.record, text="forged")))
        case "generator":
            return replace(good, signed=cast.record(question, by=2))
        case "quorum":
            return cast.certified(signed, signers=2)
        case "signature":
            votes = list(certificate.precommits)
            votes[0] = replace(votes[0], signature=votes[1].signature)
            return replace(good, certificate=replace(certificate, precommits=tuple(votes)))
        case "scores":
            scores = tuple(replace(score, ppm=1_000_000) for score in good.leaf.scores)
            return replace(good, leaf=replace(good.leaf, scores=scores))
        case "dimensions":
            return replace(good, leaf=replace(good.leaf, scores=good.leaf.scores[:1]))
        case "another request":
            return cast.certified(cast.record("quite another question", by=1))
        case "below the threshold":
            return cast.certified(signed, ppm=cast.context.policy.reuse_min_ppm - 100_000)
        case "not asked for":
            return MisbehaviourError("holder sent a record that was not asked for")
    raise AssertionError(how)


BAD = [
    "text",
    "generator",
    "quorum",
    "signature",
    "scores",
    "dimensions",
    "another request",
    "below the threshold",
    "not asked for",
]


@pytest.mark.parametrize("how", BAD)
async def test_a_bad_record_is_refused_and_counted_and_the_next_holder_answers(
    cast, autojump_clock, shelf, how: str
) -> None:
    question = shelf.question(held=False)
    liar, honest = (shelf.shelves.peer_of(address) for address in shelf.holders(question))
    good = cast.certified(cast.record(question, by=1))
    shelf.shelves.gives = {liar: tampered(cast, question, how), honest: good}
    shelf.shelves.takes_s = {honest: 0.5}
    found = await shelf.cache.remote(cast.key(question))
    assert found is not None
    assert (found.certified, found.holder) == (good, honest)
    assert shelf.cache.counters.refused == 1
    (refused,) = [event for event in cast.told if event.kind == "record_refused"]
    assert refused.fields["holder"] == liar


@pytest.mark.parametrize("how", BAD)
async def test_with_no_honest_holder_there_is_no_hit(cast, autojump_clock, shelf, how: str) -> None:
    question = shelf.question(held=False)
    for address in shelf.holders(question):
        shelf.shelves.gives[shelf.shelves.peer_of(address)] = tampered(cast, question, how)
    assert await shelf.cache.remote(cast.key(question)) is None
    assert (shelf.cache.counters.refused, shelf.cache.counters.misses) == (2, 1)


@pytest.mark.parametrize("how", [how for how in BAD if how != "not asked for"])
async def test_our_own_store_is_not_believed_either(cast, autojump_clock, shelf, how: str) -> None:
    question = shelf.question(held=True)
    await shelf.store.put(tampered(cast, question, how), cast.key(question), 900_000)
    assert await shelf.cache.local(cast.key(question)) is None
    assert shelf.cache.counters.refused == 1


async def test_slow_and_silent_holders_cost_the_hit_and_no_more(cast, autojump_clock, shelf) -> None:
    question = shelf.question(held=False)
    slow, silent = (shelf.shelves.peer_of(address) for address in shelf.holders(question))
    shelf.shelves.gives = {slow: cast.certified(cast.record(question, by=1)), silent: DeadlineError("silence")}
    shelf.shelves.takes_s = {slow: module.ASK_DEADLINE_S + 1}
    started = trio.current_time()
    assert await shelf.cache.remote(cast.key(question)) is None
    assert trio.current_time() - started == pytest.approx(module.ASK_DEADLINE_S)
    assert shelf.cache.counters.refused == 0


async def test_a_dht_that_fails_costs_the_hit_and_no_more(cast, autojump_clock, shelf) -> None:
    shelf.network.neighbours = ()
    shelf.network.fails = UnreachableError("no routing table yet")
    assert await shelf.cache.remote(cast.key(shelf.question(held=False))) is None


async def test_far_holders_are_found_through_the_dht(cast, autojump_clock, shelf) -> None:
    question = shelf.question(held=False)
    shelf.network.neighbours = ()
    shelf.network.announced = ("somebody else", shelf.network.peer_id)
    shelf.shelves.gives = {
        shelf.shelves.peer_of(address): UnreachableError("gone") for address in shelf.holders(question)
    }
    shelf.shelves.gives["somebody else"] = cast.certified(cast.record(question, by=1))
    found = await shelf.cache.remote(cast.key(question))
    assert found is not None
    assert found.holder == "somebody else"
    assert shelf.network.peer_id not in shelf.shelves.asked


async def test_near_holders_that_fail_are_made_up_for_by_others(cast, autojump_clock, shelf) -> None:
    asked, embedding = cast.request("What is near?"), b"\x7f" + bytes(383)
    certified = cast.certified(cast.record("What is nearest?", by=1, embedding=embedding))
    for identity in cast.identities[1:]:
        shelf.shelves.gives[identity.peer_id] = UnreachableError("gone")
    shelf.network.announced = ("somebody else", shelf.network.peer_id)
    shelf.shelves.gives["somebody else"] = certified
    (near,) = await shelf.cache.remote_near(asked, embedding)
    assert (near.certified, near.holder) == (certified, "somebody else")
    assert len(shelf.shelves.asked) == len(set(shelf.shelves.asked)), "nobody is asked twice"


async def test_near_holders_that_have_nothing_are_believed(cast, autojump_clock, shelf) -> None:
    shelf.network.fails = AssertionError("the DHT was asked")
    assert await shelf.cache.remote_near(cast.request("What is near?"), b"\x7f" + bytes(383)) == ()
    assert len(shelf.shelves.asked) in {1, 2}


async def test_a_disk_that_cannot_be_read_costs_the_hit_and_no_more(cast, autojump_clock, shelf) -> None:
    async def broken(*_args, **_kwargs):
        raise StoreError("record store: disk I/O error")

    shelf.store.get = broken
    assert await shelf.cache.local(cast.key("why?")) is None


async def test_a_holder_keeps_what_verifies_and_is_its_own_to_hold(cast, autojump_clock, shelf) -> None:
    mine = next(
        certified
        for certified in (cast.certified(cast.record(f"question {number}", by=1)) for number in range(1000))
        if cast.context.address in shelf.cache.holders_of_record(certified)
    )
    assert await shelf.cache.hold(mine) is True
    assert await shelf.cache.hold(mine) is False
    assert cast.kinds().count("record_held") == 1
    question = mine.signed.record.request.question()
    for how in ("text", "quorum", "scores"):
        with pytest.raises(PeerFault):
            await shelf.cache.hold(tampered(cast, question, how))
    assert (await shelf.store.stats()).records == 1


async def test_shards_of_others_are_not_held(cast, autojump_clock, shelf, monkeypatch) -> None:
    monkeypatch.setattr(holders_module, "IN_LINE", 1)  # in a network of four everybody is in line for everything
    assert shelf.cache.holders.in_line(Shard("key", 1)) == (
        cast.context.address in shelf.cache.holders_of(Shard("key", 1))
    )
    foreign = [
        certified
        for certified in (
            cast.certified(cast.record(f"question {number}", by=1, embedding=random.Random(number).randbytes(384)))
            for number in range(100)
        )
        if cast.context.address not in shelf.cache.holders_of_record(certified)
    ]
    with pytest.raises(PeerFault, match="do not hold"):
        await shelf.cache.hold(foreign[0])


async def test_a_stranger_sees_public_records_only(cast, autojump_clock, shelf) -> None:
    for visibility in ("group", "public"):
        certified = cast.certified(cast.record(visibility, by=1, visibility=visibility))
        await shelf.store.put(certified, cast.key(visibility), 900_000)
    assert await shelf.cache.lookup(cast.key("group"), member=False) is None
    assert await shelf.cache.lookup(cast.key("group"), member=True) is not None
    assert await shelf.cache.lookup(cast.key("public"), member=False) is not None


async def test_shards_are_announced_again_before_they_expire_and_after_a_failure(
    cast, autojump_clock, shelf, nursery
) -> None:
    certified = next(
        certified
        for certified in (cast.certified(cast.record(f"question {number}", by=1)) for number in range(1000))
        if cast.context.address in shelf.cache.holders_of_record(certified)
    )
    await shelf.store.put(certified, certified.leaf.request_key, 900_000)
    shelf.network.fails = UnreachableError("no peers yet")
    nursery.start_soon(shelf.cache.announce)  # begins with what the last run stored
    await trio.sleep(1)
    assert shelf.network.provided == []
    shelf.network.fails = None
    await trio.sleep(module.PROVIDE_RETRY_S + 1)
    first = {key for _, key in shelf.network.provided}
    assert len(first) == shelf.cache.shards_announced() >= 1
    await trio.sleep(24 * 3600)
    again = [key for at, key in shelf.network.provided if at > 3600]
    assert set(again) == first
    assert cast.kinds().count("shard_announced") == len(shelf.network.provided)


async def test_the_store_knows_which_records_placement_gives_us(cast, shelf) -> None:
    """They are the last ones that a full store gives up."""
    ours = []
    for number in range(40):
        certified = cast.certified(cast.record(f"question {number}", by=1))
        held = cast.context.address in shelf.cache.holders_of_record(certified)
        assert shelf.store.ours(certified.leaf.request_key, certified.signed.record.embedding) is held
        ours.append(held)
    assert any(ours)
