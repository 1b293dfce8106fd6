# ruff: noqa: E501 - tables
"""Whole validators on a virtual clock: deciding, round change, restart, catching up, being alone."""

from __future__ import annotations

import errno

import msgspec
import pytest
import trio

from nsllm.consensus import guard_file
from nsllm.consensus import wal as wal_module
from nsllm.consensus.driver import Driver
from nsllm.consensus.errors import ConsensusError, DivergenceError
from nsllm.consensus.events import BlockCommitted, Halted, OffenceSeen, PeerBlamed, RoundEntered, SigningRefused
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.message import (
    HeightCertificate,
    PolkaCertificate,
    RoundCertificate,
    decode_message,
    encode_message,
)
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.vote import Proposal, Vote
from nsllm.consensus.wal import WriteAheadLog
from nsllm.errors import OwnFault


async def start(nursery, house, peers=None):
    await nursery.start(house.mesh.run)
    for peer in house.peers if peers is None else peers:
        await nursery.start(peer.run)


async def test_four_validators_decide(autojump_clock, house):
    town = house(4)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(5)
        began = trio.current_time()
        await town.until_height(5)
        assert trio.current_time() - began < 1.0, "a round of round trips, no timeout"
        town.check_agreement()
        assert all(d.certificate.round == 0 for d in town.peers[0].application.chain)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_few_validators_decide(autojump_clock, house, count):
    town = house(count)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(3)
        await town.until_height(3, timeout_s=1.0)
        town.check_agreement()
        nursery.cancel_scope.cancel()


async def test_nothing_is_decided_while_nothing_is_wanted(autojump_clock, house):
    town = house(4)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        await trio.sleep(60)
        assert [peer.height for peer in town.peers] == [0, 0, 0, 0]
        town.peers[0].application.delay_s = 5.0
        town.want(1)
        await town.until_height(1, timeout_s=6.0)
        nursery.cancel_scope.cancel()


async def test_a_silent_proposer_costs_a_round(autojump_clock, house):
    town = house(4)
    silent = next(p for p in town.peers if p.address == town.validators.proposer(1, 0))
    others = [p for p in town.peers if p is not silent]
    async with trio.open_nursery() as nursery:
        await start(nursery, town, others)
        town.want(1)
        await town.until_height(1, others, timeout_s=10.0)
        assert others[0].application.chain[0].certificate.round == 1
        nursery.cancel_scope.cancel()
    town.check_agreement()


def signed_by(town, peer):
    """Everything that `peer` ever sent over its own signature, by slot."""
    slots: dict[tuple, set] = {}
    for sender, _, raw in town.mesh.log:
        body = decode_message(raw)
        if sender != peer.address or not isinstance(body, Vote | Proposal):
            continue
        if isinstance(body, Vote) and body.validator == peer.address:
            slots.setdefault((body.kind, body.height, body.round), set()).add(body.value)
        elif isinstance(body, Proposal) and body.proposer == peer.address:
            slots.setdefault(("proposal", body.height, body.round), set()).add(body.value)
    return slots


@pytest.mark.parametrize("moment", ["vote_written", "vote_sent", "committing", "committed"])
async def test_twenty_crashes_and_never_a_second_value(autojump_clock, house, kit, moment):
    town = house(4)
    victim = town.peers[2]
    crashes = 0

    def crash(now):
        nonlocal crashes
        if now == moment and crashes < 20:
            crashes += 1
            raise kit.Crash

    victim.checkpoint = crash
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        for number in range(20):
            while crashes == number:
                town.want(max(peer.height for peer in town.peers) + 1)
                with trio.move_on_after(2):
                    await victim.stopped()
            await trio.sleep(0.05)
            await nursery.start(victim.run)
        last = max(peer.height for peer in town.peers) + 3
        town.want(last)
        await town.until_height(last)
        nursery.cancel_scope.cancel()
    assert crashes == 20
    town.check_agreement()
    for slot, values in signed_by(town, victim).items():
        assert len(values) == 1, f"{slot} was signed {len(values)} times"
    assert not [e for p in town.peers for e in p.events if isinstance(e, OffenceSeen | SigningRefused)]


async def test_a_solo_validator_crashes_and_goes_on(autojump_clock, house, kit):
    """No other peer can help it: all that it knows is in its files."""
    town = house(1)
    (peer,) = town.peers
    moments = iter(range(1, 100))

    def crash(now):
        if next(moments) % 3 == 0:
            raise kit.Crash

    peer.checkpoint = crash
    async with trio.open_nursery() as nursery:
        await nursery.start(town.mesh.run)
        await nursery.start(peer.run)
        peer.want(6)
        for _ in range(40):
            with trio.move_on_after(1):
                await peer.stopped()
            if peer.height == 6 and peer.error is None:
                break
            await nursery.start(peer.run)
        assert peer.height == 6
        nursery.cancel_scope.cancel()


async def test_all_crash_between_precommit_and_decision(autojump_clock, house, kit):
    """Everybody has precommitted and nobody has heard the others: after the restart the same block is decided."""
    town = house(4)
    town.mesh.drop = lambda frm, to, raw: getattr(decode_message(raw), "kind", "") == "precommit"
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(1)
        await town.until(lambda: all(p.driver.status().step == "precommit" for p in town.peers))
        locked = {p.driver.status().locked for p in town.peers}
        assert len(locked) == 1
        for peer in town.peers:
            await peer.stop()
        town.mesh.drop = lambda frm, to, raw: False
        for peer in town.peers:
            await nursery.start(peer.run)
            assert peer.driver.status().height in {0, 1}
        await town.until_height(1)
        assert {p.application.chain[0].block.header.id() for p in town.peers} == locked
        assert sum(p.application.proposed for p in town.peers) == 1, "nobody built another block"
        nursery.cancel_scope.cancel()


async def test_a_validator_that_was_away_catches_up(autojump_clock, house):
    town = house(4)
    away, others = town.peers[0], town.peers[1:]
    async with trio.open_nursery() as nursery:
        await start(nursery, town, others)
        for peer in others:
            peer.want(40)
        await town.until_height(40, others)
        await nursery.start(away.run)
        away.want(0)
        await town.until_height(40, timeout_s=5.0)
        town.check_agreement()
        assert all(e.synced for e in away.events if isinstance(e, BlockCommitted))
        town.want(45)
        await town.until_height(45)
        nursery.cancel_scope.cancel()
    town.check_agreement()


async def test_bad_blocks_from_a_source_are_refused_and_others_asked(autojump_clock, house, kit):
    town = house(4)
    away, others = town.peers[0], town.peers[1:]
    async with trio.open_nursery() as nursery:
        await start(nursery, town, others)
        for peer in others:
            peer.want(5)
        await town.until_height(5, others)
        honest = others[0].application.chain
        forged = kit.certify(town.keys[:2], honest[0].block)
        stranger = kit.certify(kit.keys(4)[1:], kit.block(town.validators, proposer=town.keys[1].address, salt=99))
        bad = [[forged], [honest[1]], [msgspec.structs.replace(honest[0], certificate=honest[1].certificate)],
               [msgspec.structs.replace(honest[0], block=stranger.block)]]  # fmt: skip
        town.tamper = lambda blocks: bad.pop() if bad else blocks
        await nursery.start(away.run)
        await town.until_height(5)
        blamed = [e.code for e in away.events if isinstance(e, PeerBlamed)]
        assert len(blamed) == 4
        assert set(blamed) <= {"bad_certificate", "bad_block"}
        town.check_agreement()
        nursery.cancel_scope.cancel()


async def test_half_of_the_messages_are_lost(autojump_clock, house):
    town = house(4, seed=5)
    town.mesh.drop = lambda frm, to, raw: town.mesh.random.random() < 0.5
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(6)
        await town.until_height(6, timeout_s=600)
        nursery.cancel_scope.cancel()
    town.check_agreement()


async def test_a_partition_heals(autojump_clock, house):
    """Two and two: nothing is decided; then everything is, at once."""
    town = house(4)
    half = {town.peers[0].address, town.peers[1].address}
    town.mesh.drop = lambda frm, to, raw: (frm in half) != (to in half)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(3)
        await trio.sleep(300)
        assert [p.height for p in town.peers] == [0, 0, 0, 0]
        town.mesh.drop = lambda frm, to, raw: False
        await town.until_height(3, timeout_s=30)
        nursery.cancel_scope.cancel()
    town.check_agreement()


async def test_a_selective_sender_cannot_stall(autojump_clock, house):
    """The proposer shows its block and its votes to one validator only: that one's relays bring the rest along."""
    town = house(4)
    proposer = next(p for p in town.peers if p.address == town.validators.proposer(1, 0))
    friend = next(p for p in town.peers if p is not proposer)
    town.mesh.drop = lambda frm, to, raw: frm == proposer.address and to != friend.address
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(3)
        await town.until_height(3, timeout_s=120)
        nursery.cancel_scope.cancel()
    town.check_agreement()


async def test_a_block_that_all_refuse_is_not_decided(autojump_clock, house):
    town = house(4)
    builder = town.validators.proposer(1, 0)
    for peer in town.peers:
        peer.application.refuse = lambda block: block.header.proposer == builder
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(1)
        await town.until_height(1)
        assert town.peers[0].application.chain[0].block.header.proposer == town.validators.proposer(1, 1)
        blamed = [e for p in town.peers for e in p.events if isinstance(e, PeerBlamed)]
        assert {(e.sender, e.code) for e in blamed} == {(builder, "bad_block")}
        nursery.cancel_scope.cancel()


async def test_divergence_halts(autojump_clock, house):
    town = house(4)
    town.peers[3].application.diverge_at = 2
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(4)
        await town.until_height(4, town.peers[:3])
        with trio.fail_after(10):
            await town.peers[3].stopped()
        status = town.peers[3].driver.status()
        assert (status.step, status.height) == ("halted", 2)
        assert "roots differ" in status.halted
        assert isinstance(town.peers[3].error, DivergenceError)
        assert any(isinstance(e, Halted) for e in town.peers[3].events)
        nursery.cancel_scope.cancel()


async def test_a_lost_log_means_no_vote_at_that_height(autojump_clock, house):
    """The guard knows that something was signed; what was locked is gone; so this height goes without our vote."""
    town = house(4)
    victim = town.peers[3]
    town.mesh.drop = lambda frm, to, raw: getattr(decode_message(raw), "kind", "") == "precommit"
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(1)
        await town.until(lambda: victim.driver.status().step == "precommit")
        await victim.stop()
        (victim.folder / "wal").unlink()
        before = len(town.mesh.log)
        await nursery.start(victim.run)
        town.mesh.drop = lambda frm, to, raw: False
        await town.until_height(1)
        assert any(isinstance(e, SigningRefused) for e in victim.events)
        said = [
            {raw for frm, _, raw in part if frm == victim.address}
            for part in (town.mesh.log[:before], town.mesh.log[before:])
        ]
        new = [decode_message(raw) for raw in said[1] - said[0]]
        assert not [v for v in new if isinstance(v, Vote | Proposal)], (
            "others may remind it of its votes; it makes none"
        )
        town.want(3)
        await town.until_height(3)
        assert not victim.driver.status().abstaining
        nursery.cancel_scope.cancel()


async def test_junk_costs_its_sender_only(autojump_clock, house, kit):
    town = house(4)
    liar, target = town.peers[0], town.peers[1]
    keys = town.keys
    block = kit.block(town.validators, proposer=keys[0].address)
    forged = msgspec.structs.replace(kit.vote(keys[2], "prevote", None), value=block.header.id())
    junk = {
        "encoding_error": [b"", b"\xff" * 100, encode_message(kit.vote(keys[0], "prevote", None)) + b"\0"],
        "signature_error": [encode_message(forged), encode_message(kit.vote(keys[0], "prevote", None, network=bytes(32)))],
        "bad_vote": [
            encode_message(kit.vote(keys[0], "prevote", None, epoch=1)),
            encode_message(kit.vote(kit.keys(9)[-1], "prevote", None))
            if kit.keys(9)[-1].address not in town.validators
            else encode_message(kit.vote(keys[0], "prevote", None, epoch=2)),
            encode_message(kit.proposal(keys[0], block)),
            encode_message(PolkaCertificate(votes=(kit.vote(keys[0], "prevote", None), kit.vote(keys[0], "precommit", None)))),
            encode_message(RoundCertificate(votes=(kit.vote(keys[0], "precommit", None),) * 3)),
        ],
        "bad_certificate": [encode_message(HeightCertificate(certificate=kit.certify(keys[:2], block).certificate))],
    }  # fmt: skip
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        for messages in junk.values():
            for message in messages:
                target.driver.receive(liar.address, message)
        target.driver.receive(bytes(20), b"a stranger's")
        await trio.sleep(1)
        blamed = [(e.sender, e.code) for e in target.events if isinstance(e, PeerBlamed)]
        assert blamed == [(liar.address, code) for code, messages in junk.items() for _ in messages]
        assert target.driver.status().step == "idle"
        for _ in range(5000):
            target.driver.receive(liar.address, b"flood")
        assert target.driver.status().pending <= 128
        town.want(2)
        await town.until_height(2, timeout_s=5)
        nursery.cancel_scope.cancel()
    town.check_agreement()


async def test_one_liar_cannot_make_us_fetch_or_jump(autojump_clock, house, kit):
    town = house(4)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        target = town.peers[1]
        for height in range(2, 40):
            vote = kit.vote(town.keys[0], "prevote", None, height=height, round_=height)
            target.driver.receive(town.keys[0].address, encode_message(vote))
        await trio.sleep(5)
        assert (target.driver.status().behind, target.driver.status().height) == (0, 1)
        vote = kit.vote(town.keys[2], "prevote", None, height=30)
        target.driver.receive(town.keys[0].address, encode_message(vote))
        await trio.sleep(5)
        assert target.driver.status().behind == 29, "f+1 of them are believed, whoever relays"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("where", "call"),
    [("wal", "pwrite"), ("wal", "sync_data"), ("wal", "ftruncate"), ("guard", "pwrite"), ("guard", "sync_data")],
)
async def test_a_full_disk_sends_nothing(autojump_clock, house, monkeypatch, where, call):
    """It ends loudly, nothing leaves that is not on disk, and with space again it goes on and contradicts nothing."""
    town = house(4)
    victim, others = town.peers[2], [town.peers[i] for i in (0, 1, 3)]
    module = {"wal": wal_module, "guard": guard_file}[where]
    failure: list[OwnFault] = []

    async def run():
        try:
            await victim.run()
        except OwnFault as error:
            failure.append(error)
            town.mesh.drivers.pop(victim.address)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    async with trio.open_nursery() as nursery:
        await start(nursery, town, others)
        nursery.start_soon(run)
        town.want(2)
        await town.until_height(2)
        with monkeypatch.context() as patched:
            patched.setattr(module, "os", Replaced(module, victim.folder, call, full))
            patched.setattr(module, "sync_data", Replaced(module, victim.folder, call, full).sync)
            before = len(town.mesh.log)
            town.want(3)
            await town.until(lambda: bool(failure))
            assert "No space left" in str(failure[0])
            said = [decode_message(raw) for frm, _, raw in town.mesh.log[before:] if frm == victim.address]
            votes = [one for one in said if isinstance(one, Vote) and one.validator == victim.address]
            assert call == "ftruncate" or all(vote.height < 3 for vote in votes), "that one fails after the decision"
            await town.until_height(3, others)
        await nursery.start(victim.run)
        town.want(5)
        await town.until_height(5)
        nursery.cancel_scope.cancel()
    town.check_agreement()
    assert all(len(values) == 1 for values in signed_by(town, victim).values())
    assert not [e for p in town.peers for e in p.events if isinstance(e, OffenceSeen)]


class Replaced:
    """Stands in for a module's `os`: one call fails on files of one folder."""

    def __init__(self, module, folder, call, failing):
        self._os, self._sync = module.os, module.sync_data
        self._folder, self._call, self._failing = folder, call, failing

    def __getattr__(self, name):
        return self._guarded(name, getattr(self._os, name)) if name == self._call else getattr(self._os, name)

    def sync(self, handle):
        return self._guarded("sync_data", self._sync)(handle)

    def _guarded(self, name, real):
        def called(handle, *more):
            path = self._os.readlink(f"/proc/self/fd/{handle}")
            if name == self._call and path.startswith(str(self._folder)):
                return self._failing(handle, *more)
            return real(handle, *more)

        return called


async def test_rounds_are_told(autojump_clock, house):
    town = house(1)
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(2)
        await town.until_height(2)
        await trio.sleep(0.1)
        kinds = [type(e) for e in town.peers[0].events]
        assert kinds == [RoundEntered, BlockCommitted] * 2
        assert town.peers[0].moments == ["vote_written", "vote_sent"] * 3 * 1 + ["committing", "committed"] + [
            "vote_written", "vote_sent"] * 3 + ["committing", "committed"]  # fmt: skip
        nursery.cancel_scope.cancel()


def test_a_stranger_cannot_drive(house, kit):
    town = house(4)
    town.validators = kit.validators(kit.keys(3))
    stranger = next(p for p in town.peers if p.address not in town.validators)
    with pytest.raises(ConsensusError, match="is not a validator"):
        Driver(
            network=kit.NETWORK, guard=SignerGuard(stranger.key, kit.NETWORK, stranger.folder / "guard"),
            application=kit.Application(town.validators), mesh=None, source=None, clock=None, wal=None,
            timeouts=Timeouts(), observer=print,
        )  # fmt: skip


async def test_nothing_is_sent_before_it_is_on_disk(autojump_clock, house, kit, monkeypatch):
    """At the moment a vote leaves: the guard's file names it, the log holds it, and what led to it was synced before."""
    town = house(4)
    synced, ends = {}, {}

    def sync(log, real=WriteAheadLog.sync):
        real(log)
        synced[log._path] = log._end

    def append(log, entry, real=WriteAheadLog.append):
        ends[log._path] = log._end
        real(log, entry)

    monkeypatch.setattr(WriteAheadLog, "sync", sync)
    monkeypatch.setattr(WriteAheadLog, "append", append)
    seen = 0

    def look(frm, to, raw):
        nonlocal seen
        peer = next(p for p in town.peers if p.address == frm)
        body = decode_message(raw)
        if isinstance(body, Vote | Proposal) and peer.moments[-1:] == ["vote_written"]:
            seen += 1
            on_disk = SignerGuard(peer.key, kit.NETWORK, peer.folder / "guard").last
            assert on_disk.digest == body.digest(kit.NETWORK)
            assert body.signature in (peer.folder / "wal").read_bytes()
            assert synced[peer.folder / "wal"] == ends[peer.folder / "wal"], (
                "all but the vote itself, which is in the guard"
            )
        return False

    town.mesh.drop = look
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        town.want(2)
        await town.until_height(2)
        nursery.cancel_scope.cancel()
    assert seen >= 2 * 3 * 8


async def test_a_timer_that_had_fired_is_not_armed_again(autojump_clock, house):
    """Alone in its round, a validator waits for the proposal, prevotes nil, and comes back: it waits for nothing twice."""
    town = house(4)
    victim = next(
        p for p in town.peers if p.address not in {town.validators.proposer(1, round_) for round_ in range(2)}
    )
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        victim.want(1)
        await town.until(lambda: victim.driver.status().step == "prevote")
        assert victim.driver._agenda.timers == 0
        said = victim.moments.count("vote_sent")
        await victim.stop()
        await nursery.start(victim.run)
        await town.until(lambda: victim.driver.status().step == "prevote")
        assert victim.driver._agenda.timers == 0
        await trio.sleep(60)
        assert victim.moments.count("vote_sent") == said == 1
        nursery.cancel_scope.cancel()


async def test_a_timer_that_had_not_fired_is_armed_again(autojump_clock, house):
    town = house(4)
    victim = next(
        p for p in town.peers if p.address not in {town.validators.proposer(1, round_) for round_ in range(2)}
    )
    async with trio.open_nursery() as nursery:
        await start(nursery, town)
        victim.want(1)
        await town.until(lambda: victim.driver.status().step == "propose")
        await victim.stop()
        await nursery.start(victim.run)
        await town.until(lambda: victim.driver.status().step == "prevote", timeout_s=10)
        nursery.cancel_scope.cancel()
