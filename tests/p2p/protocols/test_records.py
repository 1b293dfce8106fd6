"""Submit, fetch and push: records travel within bounds, and every refusal has its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.registry import Member
from nsllm.ids import ZERO_DIGEST, Digest
from nsllm.p2p.errors import DeadlineError, MisbehaviourError, NetworkError, RefusedError, UnreachableError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Stream
from nsllm.p2p.protocols.fetch import (
    FETCH,
    MAX_FETCH_BYTES,
    FetchAnswer,
    Fetcher,
    FetchRequest,
    Found,
    serve_fetch,
)
from nsllm.p2p.protocols.lines import LISTEN_S
from nsllm.p2p.protocols.push import (
    MAX_PUSH_BYTES,
    PUSH,
    Push,
    PushAnswer,
    Pusher,
    Stored,
    serve_push,
)
from nsllm.p2p.protocols.submit import (
    IDLE_S,
    MAX_SUBMIT_BYTES,
    SUBMIT,
    RefusedRecord,
    Submission,
    SubmitAnswer,
    Submitter,
    Verdicts,
    serve_submit,
)
from nsllm.p2p.rates import Rate
from nsllm.record import SignedRecord, request_key


class Pending:
    """A validator's pending records; refuses texts with "bad" in them."""

    def __init__(self) -> None:
        self.taken: list[tuple[SignedRecord, Member]] = []

    async def judge(self, signed: SignedRecord, member: Member) -> str | None:
        if "bad" in signed.record.text:
            return "bad " * 100
        self.taken.append((signed, member))
        return None


async def test_each_record_has_its_verdict(town: Any, make_record: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    pending = Pending()
    bob.network.handle(SUBMIT, serve_submit(bob.directory, pending.judge))
    good, bad = make_record(alice.member_key, "good"), make_record(alice.member_key, "bad")
    foreign = make_record(carol.member_key)
    forged = msgspec.structs.replace(make_record(alice.member_key, "x"), signature=good.signature)
    async with town.running():
        verdicts = await Submitter(alice.network).submit(bob.peer, [good, bad, foreign, forged])
    reasons = [verdicts[signed.record.digest()] for signed in (good, bad, foreign, forged)]
    assert reasons[0] is None
    assert reasons[1].startswith("bad bad")
    assert len(reasons[1]) == 200
    assert "submitted by" in reasons[2]
    assert "signed by" in reasons[3]
    assert [(signed, member.address) for signed, member in pending.taken] == [(good, alice.address)]


async def test_slots_bound_a_members_records(town: Any, make_record: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    bob.network.handle(SUBMIT, serve_submit(bob.directory, Pending().judge))
    records = [make_record(alice.member_key, str(number)) for number in range(6)]
    async with town.running():
        verdicts = list((await Submitter(alice.network).submit(bob.peer, records)).values())
        assert verdicts[:4] == [None] * 4
        assert all("more than 4 records" in verdict for verdict in verdicts[4:])
        await trio.sleep(61)
        assert list((await Submitter(alice.network).submit(bob.peer, records[4:])).values()) == [None, None]


@contextmanager
def counted(network: Any) -> Iterator[list[str]]:
    """Protocols of the streams that are opened."""
    opened, plain = [], network.open

    async def counting(peer: Any, protocol: str) -> Stream:
        opened.append(protocol)
        return await plain(peer, protocol)

    network.open = counting
    yield opened
    network.open = plain


async def test_who_submits_meanwhile_goes_together_over_one_stream(
    town: Any, make_record: Any, autojump_clock: Any
) -> None:
    alice, bob = town.citizens[:2]
    taken: list[Digest] = []

    async def judge(signed: SignedRecord, _: Member) -> str | None:
        await trio.sleep(1)
        taken.append(signed.record.digest())
        return None

    bob.network.handle(SUBMIT, serve_submit(bob.directory, judge))
    records = [make_record(alice.member_key, str(number)) for number in range(4)]
    submitter = Submitter(alice.network)
    async with town.running():
        with counted(alice.network) as opened:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for signed in records:
                    nursery.start_soon(_is_taken, submitter, bob.peer, signed)
                await trio.testing.wait_all_tasks_blocked()
                with trio.move_on_after(0.5):  # one of those that wait gives up
                    await submitter.submit(bob.peer, [make_record(alice.member_key, "another")])
            assert trio.current_time() - began == pytest.approx(4, abs=0.5)
    assert sorted(taken) == sorted(signed.record.digest() for signed in records)
    assert opened == [SUBMIT]


async def _is_taken(submitter: Submitter, peer: Any, signed: SignedRecord) -> None:
    assert await submitter.submit(peer, [signed]) == {signed.record.digest(): None}


async def test_a_stream_that_was_closed_or_given_up_is_replaced(
    town: Any, make_record: Any, autojump_clock: Any
) -> None:
    alice, bob = town.citizens[:2]
    pause_s = 0.0

    async def judge(_: SignedRecord, __: Member) -> str | None:
        await trio.sleep(pause_s)
        return None

    bob.network.handle(SUBMIT, serve_submit(bob.directory, judge))
    records = iter([make_record(alice.member_key, str(number)) for number in range(4)])
    submitter = Submitter(alice.network)
    async with town.running():
        with counted(alice.network) as opened:
            await _is_taken(submitter, bob.peer, next(records))
            await trio.sleep(IDLE_S + 1)
            await _is_taken(submitter, bob.peer, next(records))
            assert len(opened) == 2
            pause_s = 9.0
            with pytest.raises(DeadlineError):
                await submitter.submit(bob.peer, [next(records)], deadline_s=1.0)
            pause_s = 0.0
            await _is_taken(submitter, bob.peer, next(records))
            assert len(opened) == 3


async def test_members_only(town: Any, make_record: Any, make_certified: Any, autojump_clock: Any) -> None:
    bob, carol = town.citizens[1:]
    pending = Pending()
    bob.network.handle(SUBMIT, serve_submit(bob.directory, pending.judge))
    bob.network.handle(PUSH, serve_push(bob.directory, _refuse_nothing))
    async with town.running():
        with pytest.raises(RefusedError, match="members only"):
            await Submitter(carol.network).submit(bob.peer, [make_record(carol.member_key)])
        with pytest.raises(RefusedError, match="members only"):
            await Pusher(carol.network).push(bob.peer, make_certified(carol.member_key))
    assert pending.taken == []


async def _refuse_nothing(record: CertifiedRecord, member: Member) -> str | None:
    return None


@pytest.mark.parametrize(("count", "about"), [(1, None), (2, 2)])
async def test_verdicts_must_fit_the_batch(
    town: Any, make_record: Any, autojump_clock: Any, count: int, about: int | None
) -> None:
    alice, bob = town.citizens[:2]
    records = [make_record(alice.member_key, str(number)) for number in range(3)]
    refused = () if about is None else (RefusedRecord(record=records[about].record.digest(), reason="no"),)

    async def lie(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_SUBMIT_BYTES)
        await framed.receive(Submission)
        await framed.send(SubmitAnswer(answer=Verdicts(records=count, refused=refused)))

    bob.network.handle(SUBMIT, lie)
    async with town.running():
        with pytest.raises(MisbehaviourError):
            await Submitter(alice.network).submit(bob.peer, records[:2])


def key_of(certified: CertifiedRecord) -> Digest:
    return request_key(certified.signed.record.network, certified.signed.record.request)


def serve_shelf(citizen: Any, *records: CertifiedRecord, **settings: Any) -> list[tuple[Digest, bool]]:
    asked: list[tuple[Digest, bool]] = []
    shelf = {key_of(record): record for record in records}

    async def lookup(key: Digest, member: bool) -> CertifiedRecord | None:
        asked.append((key, member))
        return shelf.get(key)

    async def near(embedding: bytes, count: int, member: bool) -> list[CertifiedRecord]:
        seen = [record for record in records if member or record.signed.record.visibility == "public"]
        return [record for record in seen if record.signed.record.embedding == embedding][:count]

    citizen.network.handle(FETCH, serve_fetch(citizen.directory, lookup, near, **settings))
    return asked


async def test_fetch_by_meaning_gives_what_is_near(town: Any, make_certified: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    held = [make_certified(bob.member_key, f"question {number}") for number in range(3)]
    serve_shelf(bob, *held, strangers=Rate(per_peer=3, total=3))
    embedding = held[0].signed.record.embedding
    async with town.running():
        assert await Fetcher(alice.network).near(bob.peer, embedding, 2) == (held[0], held[1])
        assert await Fetcher(alice.network).near(bob.peer, b"\x01" * 384, 2) == ()
        assert await Fetcher(carol.network).near(bob.peer, embedding, 2) == (held[0], held[1])
        with pytest.raises(RefusedError, match="too many"):  # what is asked for counts, not what is found
            await Fetcher(carol.network).near(bob.peer, b"\x01" * 384, 2)


async def test_fetch_by_meaning_refuses_more_than_it_asked_for(
    town: Any, make_certified: Any, autojump_clock: Any
) -> None:
    alice, bob = town.citizens[:2]
    record = make_certified(bob.member_key)

    async def cheat(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_FETCH_BYTES)
        await framed.receive(FetchRequest)
        for _ in range(2):
            await framed.send(FetchAnswer(answer=Found(record=record)))
        await framed.send_end()

    bob.network.handle(FETCH, cheat)
    async with town.running():
        with pytest.raises(MisbehaviourError, match="more than 1"):
            await Fetcher(alice.network).near(bob.peer, record.signed.record.embedding, 1)


async def test_fetch_gives_what_is_held(town: Any, make_certified: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    held = [make_certified(bob.member_key, f"question {number}") for number in range(3)]
    asked = serve_shelf(bob, *held)
    async with town.running():
        keys = [key_of(record) for record in held]
        assert await Fetcher(alice.network).by_keys(bob.peer, [keys[2], ZERO_DIGEST, keys[0], keys[2]]) == (
            held[2],
            held[0],
        )
        assert await Fetcher(carol.network).by_keys(bob.peer, keys[:1]) == (held[0],)
    assert asked == [(keys[2], True), (ZERO_DIGEST, True), (keys[0], True), (keys[0], False)]


@pytest.mark.parametrize(("took_s", "ends_s"), [(0.01, 1.0), (0.9, 1.0), (1.2, 2.0)])
async def test_strangers_are_answered_at_multiples_of_the_padding(
    town: Any, make_certified: Any, autojump_clock: Any, took_s: float, ends_s: float
) -> None:
    alice, bob, carol = town.citizens
    held = make_certified(bob.member_key)

    async def lookup(key: Digest, member: bool) -> CertifiedRecord | None:
        await trio.sleep(took_s if key == key_of(held) else 0)
        return held if key == key_of(held) else None

    async def near(_embedding: bytes, _count: int, _member: bool) -> list[CertifiedRecord]:
        return []

    bob.network.handle(FETCH, serve_fetch(bob.directory, lookup, near, pad_s=lambda: 1.0))

    async def timed(citizen: Any, key: Digest) -> float:
        began = trio.current_time()
        await Fetcher(citizen.network).by_keys(bob.peer, [key])
        return trio.current_time() - began

    async with town.running():
        assert await timed(carol, key_of(held)) == pytest.approx(ends_s, abs=0.2)
        assert await timed(carol, ZERO_DIGEST) == pytest.approx(1.0, abs=0.2), "absent takes as long as quickly found"
        assert await timed(alice, ZERO_DIGEST) < 0.2, "members do not wait"


async def test_strangers_fetch_at_a_rate(town: Any, make_certified: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    serve_shelf(bob, strangers=Rate(per_peer=3, total=4))
    async with town.running():
        await Fetcher(carol.network).by_keys(bob.peer, [Digest(bytes([n]) * 32) for n in range(3)])
        with pytest.raises(RefusedError, match="too many"):
            await Fetcher(carol.network).by_keys(bob.peer, [ZERO_DIGEST])
        for _ in range(5):
            await Fetcher(alice.network).by_keys(bob.peer, [ZERO_DIGEST])
        await trio.sleep(60)
        await Fetcher(carol.network).by_keys(bob.peer, [ZERO_DIGEST])


@pytest.mark.parametrize("trick", ["unasked", "twice", "no end"])
async def test_fetch_refuses_tricks(town: Any, make_certified: Any, autojump_clock: Any, trick: str) -> None:
    alice, bob = town.citizens[:2]
    record, other = make_certified(bob.member_key), make_certified(bob.member_key, "another")

    async def cheat(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_FETCH_BYTES)
        await framed.receive(FetchRequest)
        for sent in {"unasked": [other], "twice": [record, record], "no end": [record]}[trick]:
            await framed.send(FetchAnswer(answer=Found(record=sent)))
        if trick != "no end":
            await framed.send_end()

    bob.network.handle(FETCH, cheat)
    async with town.running():
        with pytest.raises(NetworkError, match="end frame was due" if trick == "no end" else "not asked for"):
            await Fetcher(alice.network).by_keys(bob.peer, [key_of(record)])


async def test_too_many_keys_are_refused(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    asked = serve_shelf(bob)
    async with town.running():
        with pytest.raises(Exception, match="ended"):
            await Fetcher(alice.network).by_keys(bob.peer, [Digest(bytes([n]) * 32) for n in range(17)])
    assert asked == []


async def test_a_push_is_acknowledged_once_stored(town: Any, make_certified: Any, autojump_clock: Any) -> None:
    alice, bob, carol = town.citizens
    record = make_certified(alice.member_key)
    stored: list[CertifiedRecord] = []

    async def store(certified: CertifiedRecord, member: Member) -> str | None:
        assert member.address == alice.address
        await trio.sleep(0.5)
        stored.append(certified)
        return None

    async def full(certified: CertifiedRecord, member: Member) -> str | None:
        return "disk full"

    bob.network.handle(PUSH, serve_push(bob.directory, store))
    carol.network.handle(PUSH, serve_push(carol.directory, full))
    async with town.running():
        pusher = Pusher(alice.network)
        await pusher.push(bob.peer, record)
        assert stored == [record]
        with pytest.raises(RefusedError, match="disk full"):
            await pusher.push(carol.peer, record)
        with pytest.raises(UnreachableError):
            await pusher.push("unknown", record)


async def test_one_stream_carries_many_pushes_and_a_dead_one_is_replaced(
    town: Any, make_certified: Any, autojump_clock: Any
) -> None:
    alice, bob = town.citizens[:2]
    stored: list[CertifiedRecord] = []

    async def store(certified: CertifiedRecord, _member: Member) -> str | None:
        stored.append(certified)
        return None

    bob.network.handle(PUSH, serve_push(bob.directory, store))
    records = [make_certified(alice.member_key, f"question {number}") for number in range(3)]
    async with town.running():
        pusher = Pusher(alice.network)
        for record in records[:2]:
            await pusher.push(bob.peer, record)
        assert alice.network.traffic.of(PUSH).streams == 1
        await trio.sleep(LISTEN_S + 1)
        await pusher.push(bob.peer, records[2])
        assert alice.network.traffic.of(PUSH).streams == 2
    assert stored == records


async def test_a_push_to_a_frozen_holder_ends(town: Any, make_certified: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    bob.network.handle(PUSH, serve_push(bob.directory, _refuse_nothing))
    async with town.running():
        town.world.isolate(bob.peer)
        with pytest.raises(DeadlineError):
            await Pusher(alice.network).push(bob.peer, make_certified(alice.member_key))


async def test_an_acknowledgement_of_another_record_is_none(
    town: Any, make_certified: Any, autojump_clock: Any
) -> None:
    alice, bob = town.citizens[:2]

    async def lie(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_PUSH_BYTES)
        await framed.receive(Push)
        await framed.send(PushAnswer(answer=Stored(record=ZERO_DIGEST)))

    bob.network.handle(PUSH, lie)
    async with town.running():
        with pytest.raises(MisbehaviourError):
            await Pusher(alice.network).push(bob.peer, make_certified(alice.member_key))


@pytest.mark.parametrize("protocol", [SUBMIT, FETCH, PUSH])
async def test_garbage_and_giants_cost_their_stream(
    town: Any, autojump_clock: Any, protocol: str, make_certified: Callable[..., CertifiedRecord]
) -> None:
    alice, bob = town.citizens[:2]
    bob.network.handle(SUBMIT, serve_submit(bob.directory, Pending().judge))
    bob.network.handle(PUSH, serve_push(bob.directory, _refuse_nothing))
    serve_shelf(bob)
    async with town.running():
        for data in (b"\0\0\0\x05hello", (1 << 30).to_bytes(4, "big") + b"x", bytes(4), b"\0"):
            stream = await alice.network.open(bob.peer, protocol)
            await stream.send_all(data)
            with trio.fail_after(60):
                assert await stream.receive_some() == b""
