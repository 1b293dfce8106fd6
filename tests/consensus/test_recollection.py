"""What the others heard: what is told, what counts, and that nothing is signed before."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.events import PeerBlamed, SigningRefused
from nsllm.consensus.evidence import signed_part
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.message import HeightCertificate, Recalled, Request, decode_message, encode_message
from nsllm.consensus.recollection import Recollection, recall
from nsllm.consensus.vote import Proposal, Vote
from nsllm.errors import SignatureError

A, B = (bytes([i] * 32) for i in (1, 2))
ASKED_MS = 1_700_000_000_000


@pytest.mark.parametrize("where", ["now", "before", "ahead", "far ahead"])
def test_the_last_vote_and_the_last_proposal_are_told(kit, where):
    keys = kit.keys(4)
    bench, past = kit.Bench(), None
    bench.run("start; prop 0 A; pv 1 0 A; pc 1 0 A; pv 1 1 nil; prop 1 A")
    words = {"now": [], "before": [], "far ahead": [], "ahead": [kit.vote(keys[1], "prevote", A, height=2)]}[where]
    if where == "far ahead":
        bench.run("pv 1 900 nil")
    if where == "before":
        past, bench = bench.state, kit.Bench(height=2)
    told = recall(keys[1].address, ASKED_MS, bench.state, past, words)
    assert (told.asked_ms, told.height) == (ASKED_MS, bench.height)
    assert told.vote.validator == keys[1].address
    last = {"now": (1, 1), "before": (1, 1), "ahead": (2, 0), "far ahead": (1, 900)}[where]
    assert (told.vote.height, told.vote.round) == last
    proposer = bench.validators.proposer(1, 0)
    own = recall(proposer, ASKED_MS, bench.state, past, ()).proposal
    assert (own.proposer, own.height, own.round) == (proposer, 1, 0)
    assert recall(keys[3].address, ASKED_MS, bench.state, None, ()).vote is None


def test_a_precommit_is_later_than_the_prevote_of_its_round(kit):
    bench = kit.Bench()
    bench.run("start; prop 0 A; pc 1 0 A; pv 1 0 A")
    assert recall(kit.keys(4)[1].address, ASKED_MS, bench.state, None, ()).vote.kind == "precommit"


def test_who_has_answered(kit):
    validators = kit.validators(kit.keys(7))
    _, *others = validators.members
    asked = Recollection(ASKED_MS)
    answer = Recalled(asked_ms=ASKED_MS, height=5, vote=None, proposal=None)
    asked.told(others[0], replace(answer, asked_ms=ASKED_MS - 1))
    assert asked.lacking(others) == tuple(others), "an answer to an earlier life"
    for other, height in zip(others[:3], (5, 9, 9), strict=True):
        asked.told(other, replace(answer, height=height))
    asked.told(bytes(20), answer)
    assert asked.height(validators) is None
    assert asked.lacking(others) == tuple(others[3:])
    asked.told(others[3], replace(answer, height=1))
    assert asked.height(validators) == 5, "two of seven may claim what they like"
    assert Recollection(ASKED_MS).height(kit.validators(kit.keys(1))) == 0


@pytest.fixture
def guard(kit, tmp_path):
    return lambda name="guard": SignerGuard(kit.keys(4)[0], kit.NETWORK, tmp_path / name)


def test_a_guard_learns_what_is_later(kit, guard):
    key = kit.keys(4)[0]
    known = guard()
    assert known.learn(kit.vote(key, "precommit", A, height=3, round_=1))
    assert (known.last.place(), known.last.lock.value) == ((3, 1, 3), A)
    for older in [
        kit.vote(key, "precommit", A, height=3, round_=1), kit.vote(key, "precommit", B, height=3, round_=1),
        kit.vote(key, "prevote", B, height=3, round_=1), kit.vote(key, "precommit", B, height=2, round_=7),
    ]:  # fmt: skip
        assert not known.learn(older)
    again = guard()
    assert again.last == known.last, "it is on disk"
    assert again.has_signed_beyond(3, frozenset())
    assert again.learn(kit.vote(key, "prevote", None, height=3, round_=2, lock=(1, A)))
    assert again.last.lock.value == A
    block = kit.block(kit.validators(kit.keys(4)), 9, proposer=key.address)
    assert again.learn(signed_part(kit.proposal(key, block)))
    assert (again.last.place(), again.last.lock) == ((9, 0, 1), None)


def test_a_guard_believes_nobody(kit, guard):
    key, other = kit.keys(4)[:2]
    mine = kit.vote(key, "prevote", A, height=3)
    for lie in [
        kit.vote(other, "prevote", A, height=3), replace(mine, height=4), replace(mine, round=2),
        kit.vote(key, "prevote", A, height=3, network=bytes(32)),
    ]:  # fmt: skip
        with pytest.raises(SignatureError):
            guard().learn(lie)
    assert guard().last is None


def words_of(town, peer, start=0):
    bodies = [decode_message(raw) for frm, _, raw in town.mesh.log[start:] if frm == peer.address]
    own = [body for body in bodies if isinstance(body, Vote | Proposal)]
    return [body for body in own if peer.address in {getattr(body, "validator", b""), getattr(body, "proposer", b"")}]


async def test_nothing_is_signed_before_a_quorum_has_told(autojump_clock, house, kit):
    """Two are there, and one too few answers; then the third comes, and what was wanted signed is said in order."""
    town = house(4)
    mute = town.peers[3]
    told = {p.address: False for p in town.peers}

    def drop(frm, to, raw):
        return isinstance(decode_message(raw), Recalled) and not told[frm]

    town.mesh.drop = drop
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(1)
        await trio.sleep(60)
        assert [words_of(town, peer) for peer in town.peers] == [[], [], [], []]
        assert not any(peer.driver.status().abstaining for peer in town.peers)
        told[town.peers[0].address] = told[town.peers[1].address] = True
        await town.until(lambda: words_of(town, mute), timeout_s=5)
        assert not words_of(town, town.peers[0]), "one answer and itself are no quorum"
        told[mute.address] = True
        await town.until_height(1, timeout_s=60)
        nursery.cancel_scope.cancel()
    town.check_agreement()


async def test_a_liar_neither_speaks_for_us_nor_silences_us(autojump_clock, house, kit):
    """It tells votes that we never cast, and claims heights that nobody has."""
    town = house(4)
    liar, victim = town.peers[0], town.peers[1]

    def twist(frm, to, raw):
        body = decode_message(raw)
        if frm != liar.address or not isinstance(body, Recalled):
            return raw
        false = kit.vote(town.keys[0], "precommit", A, height=70)
        if to == victim.address:
            false = replace(false, validator=to)
        return encode_message(replace(body, height=1_000, vote=false))

    town.mesh.twist = twist
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(3)
        await town.until_height(3, timeout_s=30)
        nursery.cancel_scope.cancel()
    assert any(isinstance(e, PeerBlamed) and e.sender == liar.address for e in victim.events)
    assert not [e for peer in town.peers for e in peer.events if isinstance(e, SigningRefused)]
    assert words_of(town, victim)
    town.check_agreement()


async def test_who_is_behind_hears_that_its_height_is_decided(autojump_clock, house, kit):
    """Everything of a validator goes back to the beginning: it signs at no height that is decided."""
    town = house(4)
    victim = town.peers[2]
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(4)
        await town.until_height(4)
        await victim.stop()
        for name in ("wal", "guard"):
            (victim.folder / name).unlink()
        victim.application.chain.clear()
        before = len(town.mesh.log)
        await nursery.start(victim.run)
        await trio.sleep(60)
        assert victim.height == 4
        certificates = [raw for _, to, raw in town.mesh.log[before:] if to == victim.address]
        assert any(isinstance(decode_message(raw), HeightCertificate) for raw in certificates)
        assert not words_of(town, victim, before)
        town.want(7)
        await town.until_height(7)
        assert {body.height for body in words_of(town, victim, before)} == {5, 6, 7}
        nursery.cancel_scope.cancel()
    town.check_agreement()


async def test_questions_cost_little(autojump_clock, house, kit):
    town = house(4)
    target = town.peers[1]
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        await trio.sleep(2)
        before = len(town.mesh.log)
        for number in range(100):
            asking = Request(height=1, round=0, asked_ms=ASKED_MS + number)
            target.driver.receive(town.keys[0].address, encode_message(asking))
        await trio.sleep(0.1)
        answers = [raw for frm, to, raw in town.mesh.log[before:] if frm == target.address]
        assert len([raw for raw in answers if isinstance(decode_message(raw), Recalled)]) == 1
        nursery.cancel_scope.cancel()
