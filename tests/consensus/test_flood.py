"""A validator that talks far too much: what it costs the others, in messages, votes and bytes, never in time."""

from __future__ import annotations

import random

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus import core
from nsllm.consensus.events import PeerBlamed
from nsllm.consensus.horizon import MAX_KEPT
from nsllm.consensus.inbox import MAX_QUEUED, MAX_QUEUED_BYTES, Inbox
from nsllm.consensus.inputs import CertificateReceived, ProposalReceived, VoteReceived
from nsllm.consensus.message import MAX_MESSAGE_BYTES, PolkaCertificate, encode_message
from nsllm.consensus.tally import MAX_ROUNDS_AHEAD
from nsllm.consensus.vote import check_signature

JUNK = 100_000
BURST = 1_000
FAR = 2**31 - 1


def votes_in(tally) -> int:
    return sum(len(votes) for voters in tally.slots.values() for votes in voters.values()) + len(tally.far)


def junk_of(kit, key, seed: int):
    """100,000 messages: counting up rounds and heights, forged, cut, oversized, of other epochs, at random."""
    rng = random.Random(seed)
    real = encode_message(kit.vote(key, "prevote", None))
    forged = kit.vote(key, "prevote", None)
    big = bytes(MAX_MESSAGE_BYTES + 1)
    for number in range(JUNK):
        match number % 10:
            case 0:
                yield encode_message(kit.vote(key, "prevote", None, round_=number))
            case 1:
                yield encode_message(kit.vote(key, "precommit", rng.randbytes(32), round_=rng.randrange(FAR)))
            case 2:
                yield encode_message(kit.vote(key, "prevote", None, height=2 + number))
            case 3:
                yield encode_message(kit.vote(key, "prevote", rng.randbytes(32), round_=rng.randrange(6)))
            case 4:
                vote = kit.vote(key, "prevote", rng.randbytes(32), round_=rng.randrange(6))
                yield encode_message(PolkaCertificate(votes=(vote,)))
            case 5:
                yield encode_message(replace(forged, value=rng.randbytes(32)))
            case 6:
                yield encode_message(kit.vote(key, "prevote", None, epoch=1 + number))
            case 7:
                yield real[: rng.randrange(len(real))]
            case 8:
                yield rng.randbytes(64)
            case _:
                yield big


@pytest.fixture
def checked_core(monkeypatch, kit):
    """The core as it is, but nothing comes to it that its named validator did not sign; counts what came."""
    came = []
    step = core.step

    def checking(state, event):
        came.append(event)
        match event:
            case VoteReceived(vote=vote):
                check_signature(vote, kit.NETWORK)
            case CertificateReceived(votes=votes):
                for vote in votes:
                    check_signature(vote, kit.NETWORK)
            case ProposalReceived(proposal=proposal):
                check_signature(proposal, kit.NETWORK)
        return step(state, event)

    monkeypatch.setattr(core, "step", checking)
    return came


async def test_a_hundred_thousand_junk_votes(autojump_clock, house, kit, checked_core):
    town = house(4)
    liar, target = town.peers[0], town.peers[1]
    wal = target.folder / "wal"
    most = {"pending": 0, "votes": 0, "log": 0, "kept": 0}

    def look():
        driver = target.driver
        kept = driver._horizon._kept.values()
        seen = {
            "pending": driver.status().pending,
            "votes": votes_in(driver._state.tally),
            "log": wal.stat().st_size,
            "kept": max(map(len, kept), default=0),
        }
        for name, count in seen.items():
            most[name] = max(most[name], count)

    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        for number, message in enumerate(junk_of(kit, town.keys[0], seed=1), start=1):
            target.driver.receive(liar.address, message)
            if number % BURST:
                continue
            look()
            town.want(1 + number // (10 * BURST))
            await town.until(lambda: not len(target.driver._inbox), timeout_s=10)
            look()
        town.want(12)
        await town.until_height(12, timeout_s=60)
        nursery.cancel_scope.cancel()
    town.check_agreement()
    assert most["pending"] <= MAX_QUEUED * 3, "a queue a sender, and no more"
    assert most["kept"] <= MAX_KEPT
    slots = 2 * (MAX_ROUNDS_AHEAD + 2)
    assert most["votes"] <= 4 * (2 * slots + 1)
    assert most["log"] < 100_000, "what changes nothing is not logged"
    assert len(checked_core) < JUNK // 5
    blamed = [event for event in target.events if isinstance(event, PeerBlamed)]
    assert {event.sender for event in blamed} == {liar.address}
    assert {event.code for event in blamed} == {"encoding_error", "signature_error", "bad_vote"}


@pytest.mark.parametrize("liars", ["1", "12"])
def test_counting_up_the_rounds_changes_little(kit, liars):
    """n=7, f=2: whatever f validators say of later rounds moves nobody, and each changes the state a few times only."""
    bench = kit.Bench(count=7)
    bench.run("start")
    inputs = changed = 0
    for round_ in [*range(3_000), *(2**power for power in range(12, 31)), FAR]:
        for who in liars:
            inputs += 1
            before = bench.state
            bench.feed(VoteReceived(vote=bench.vote(who, "prevote", round_, "nil")))
            changed += bench.state is not before
    assert inputs > 3_000 * len(liars)
    assert changed <= len(liars) * (MAX_ROUNDS_AHEAD + 1 + 32)
    assert bench.state.round == 0
    assert votes_in(bench.state.tally) == len(liars) * (MAX_ROUNDS_AHEAD + 2)


def test_a_validator_that_was_away_still_follows_those_ahead(kit):
    """Their far votes are thinned out; each jump brings it near enough to hear them in full."""
    bench = kit.Bench(count=7)
    bench.run("start")
    for round_ in range(3, 400):
        bench.run(f"pv 123 {round_} nil")
        assert bench.state.round >= round_ // 2
    bench.run("pv 123 400 nil; pv 123 401 nil; pv 123 402 nil; pv 123 403 nil")
    assert bench.state.round >= 400


def test_the_inbox_holds_so_much_of_each_and_takes_turns(kit):
    loud, quiet = (key.address for key in kit.keys(2))
    inbox = Inbox([loud, quiet])
    assert not inbox.put(bytes(20), b"a stranger's")
    assert not inbox.put(loud, bytes(MAX_MESSAGE_BYTES + 1))
    assert len(inbox) == 0
    for number in range(JUNK):
        assert inbox.put(loud, b"%d" % number)
        assert len(inbox) <= MAX_QUEUED
    assert inbox.put(quiet, b"one word")
    assert [inbox.take() for _ in range(3)] in (
        [(loud, b"%d" % (JUNK - MAX_QUEUED)), (quiet, b"one word"), (loud, b"%d" % (JUNK - MAX_QUEUED + 1))],
        [(quiet, b"one word"), (loud, b"%d" % (JUNK - MAX_QUEUED)), (loud, b"%d" % (JUNK - MAX_QUEUED + 1))],
    ), "older ones are dropped; the quiet one waits for one message of the loud one"
    for _ in range(20):
        inbox.put(loud, bytes(MAX_MESSAGE_BYTES))
    assert sum(inbox._bytes.values()) <= MAX_QUEUED_BYTES
