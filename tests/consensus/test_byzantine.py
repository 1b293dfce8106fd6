"""Seven validators, two of them Byzantine, over the shipped driver: live, in agreement, offenders stand in a block."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm import crypto
from nsllm.consensus.events import OffenceSeen
from nsllm.consensus.evidence import check_evidence, double_vote, offence_of
from nsllm.consensus.message import HeightCertificate, Recalled, Request, decode_message, encode_message
from nsllm.consensus.vote import Proposal, Vote

HEIGHTS = 4


class Liars:
    """Validators that say one thing to some and another thing to the rest; everything is signed with their keys."""

    def __init__(self, kit, town, numbers):
        self.kit, self.town = kit, town
        self.keys = {town.keys[number].address: town.keys[number] for number in numbers}

    def twist(self, frm, to, raw):
        if frm not in self.keys or self.town.validators.members.index(to) % 2 == 0:
            return raw
        body = decode_message(raw)
        match body:
            case Vote():
                # A block that nobody knows, so that no quorum hangs on it
                other = bytes(32) if body.value is None else None
                vote = self.kit.vote(
                    self.keys[frm], body.kind, other, round_=body.round, height=body.height, lock=body.lock
                )
                return encode_message(vote)
            case Proposal() if body.proposer == frm and body.block.header.proposer == frm:
                header = body.block.header
                block = replace(body.block, header=replace(header, time_ms=header.time_ms + 1))
                return encode_message(self.kit.proposal(self.keys[frm], block, round_=body.round))
            case _:
                return raw


def honest(town, faulty):
    return [peer for peer in town.peers if peer.index not in faulty]


@pytest.mark.parametrize("faulty", [(0, 1), (2, 5), (3, 6)])
async def test_two_equivocators_of_seven_are_convicted(autojump_clock, house, kit, faulty):
    town = house(7)
    liars = Liars(kit, town, faulty)
    town.mesh.twist = liars.twist
    good = honest(town, faulty)
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(HEIGHTS)
        await town.until_height(HEIGHTS, good)
        await town.until(lambda: all(len(peer.application.convicted) == 2 for peer in good))
        nursery.cancel_scope.cancel()
    town.check_agreement()
    for peer in good:
        assert set(peer.application.convicted) == set(liars.keys), "the offenders and nobody else"
        assert peer.application.accused == {}
        for evidence in peer.application.convicted.values():
            check_evidence(evidence, kit.NETWORK, town.validators)
        seen = [offence_of(e.evidence).validator for e in peer.events if isinstance(e, OffenceSeen)]
        assert len(seen) == len(set(seen)), "told once each"
    assert all(peer.application.convicted == good[0].application.convicted for peer in good), "the same bytes"


async def test_an_equivocator_and_a_silent_one_of_seven(autojump_clock, house, kit):
    town = house(7)
    liars = Liars(kit, town, (4,))
    silent = town.keys[1].address
    town.mesh.twist = liars.twist
    town.mesh.drop = lambda frm, _to, _raw: frm == silent
    good = honest(town, (1, 4))
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(HEIGHTS)
        await town.until_height(HEIGHTS, good)
        await town.until(lambda: all(peer.application.convicted for peer in good))
        nursery.cancel_scope.cancel()
    town.check_agreement()
    assert {who for peer in good for who in peer.application.convicted} == {town.keys[4].address}


async def test_two_silent_ones_of_seven_leave_nothing_to_convict(autojump_clock, house, kit):
    town = house(7)
    silent = {town.keys[0].address, town.keys[6].address}
    town.mesh.drop = lambda frm, _to, _raw: frm in silent
    good = honest(town, (0, 6))
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(HEIGHTS)
        await town.until_height(HEIGHTS, good)
        nursery.cancel_scope.cancel()
    town.check_agreement()
    assert not [e for peer in town.peers for e in peer.events if isinstance(e, OffenceSeen)]


async def test_who_holds_no_half_gets_the_whole(autojump_clock, house, kit):
    """One validator is shown both votes; it tells the others, and the next block convicts."""
    town = house(4)
    liar = town.keys[0]
    pair = [kit.vote(liar, "prevote", value) for value in (None, bytes(32))]
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        await trio.sleep(0.1)
        for vote in pair:
            town.peers[1].driver.receive(liar.address, encode_message(vote))
        await town.until(lambda: all(peer.application.convicted for peer in town.peers), timeout_s=10)
        nursery.cancel_scope.cancel()
    assert {peer.height for peer in town.peers} == {1}, "evidence alone makes a block"
    assert all(peer.application.convicted == {liar.address: double_vote(*pair)} for peer in town.peers)


async def test_forged_evidence_costs_its_sender(autojump_clock, house, kit):
    town = house(4)
    evidence = double_vote(kit.vote(town.keys[2], "prevote", None), kit.vote(town.keys[2], "prevote", bytes(32)))
    forged = replace(evidence, first=replace(evidence.first, signature=bytes(65)))
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.peers[1].driver.receive(town.keys[0].address, encode_message(forged))
        town.peers[1].driver.receive(town.keys[0].address, encode_message(replace(evidence, first=evidence.second)))
        await trio.sleep(1)
        blamed = [(e.sender, e.code) for e in town.peers[1].events]
        assert blamed == [(town.keys[0].address, "signature_error"), (town.keys[0].address, "bad_evidence")]
        assert all(peer.height == 0 for peer in town.peers)
        nursery.cancel_scope.cancel()


async def test_what_was_seen_before_a_crash_is_proved_after_it(autojump_clock, house, kit):
    town = house(4)
    liar, witness = town.keys[0], town.peers[1]
    alone = True
    town.mesh.drop = lambda frm, to, _raw: alone and witness.address in {frm, to}
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(1)
        await town.until(lambda: witness.driver.status().step != "idle")
        for value in (None, bytes(32)):
            vote = kit.vote(liar, "prevote", value, round_=3)
            witness.driver.receive(liar.address, encode_message(vote))
        await town.until(lambda: bool(witness.application.accused))
        await witness.stop()
        witness.application.accused.clear()
        await town.until_height(1, [town.peers[2]])
        alone = False
        await nursery.start(witness.run)
        await town.until(lambda: all(peer.application.convicted for peer in town.peers))
        nursery.cancel_scope.cancel()
    town.check_agreement()


@pytest.mark.parametrize("kind", ["prevote", "precommit"])
async def test_two_halves_that_decide_by_themselves_see_through_it(autojump_clock, house, kit, kind):
    """Nobody gets both votes, nobody misses them, every height is decided at once; hindsight brings them together."""
    town = house(4)
    liar = town.peers[3]

    def twist(frm, to, raw):
        body = decode_message(raw)
        if frm != liar.address or not isinstance(body, Vote) or body.kind != kind or to != town.keys[0].address:
            return raw
        return encode_message(kit.vote(liar.key, kind, None, round_=body.round, height=body.height, lock=body.lock))

    def drop(frm, _to, raw):
        # nor do its notes tell: they are its own
        return frm == liar.address and not isinstance(decode_message(raw), Vote | Proposal | Request | Recalled)

    town.mesh.twist, town.mesh.drop = twist, drop
    good = honest(town, (3,))
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(3)
        await town.until(lambda: all(peer.application.convicted for peer in good), timeout_s=5)
        nursery.cancel_scope.cancel()
    town.check_agreement()
    assert {who for peer in good for who in peer.application.convicted} == {liar.address}
    assert all(decided.certificate.round == 0 for decided in good[0].application.chain)


async def test_notes_that_agree_cost_no_signature_check_and_no_answer(autojump_clock, house, kit, monkeypatch):
    town = house(4)
    checks = 0
    verify = crypto.verify

    def counting(*about):
        nonlocal checks
        checks += 1
        verify(*about)

    monkeypatch.setattr(crypto, "verify", counting)
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(10)
        await town.until_height(10)
        nursery.cancel_scope.cancel()
    # a height and validator: the proposal, three others' prevotes and precommits
    assert checks <= 10 * 4 * 7
    said = [decode_message(raw) for _, _, raw in town.mesh.log]
    assert not [body for body in said if isinstance(body, HeightCertificate)]
