"""Validators that stay away leave at an epoch boundary, by what blocks hold, and come back by motion."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import trio

from nsllm.consensus.attendance import Attendance
from nsllm.consensus.block import Block
from nsllm.consensus.errors import BlockError
from nsllm.governance.motion import Admit, GovernanceTransaction, Motion, Suspend, approve
from nsllm.ids import Round

replace = msgspec.structs.replace
MINUTES = 3


class Roll:
    """Two ledgers of a network of which some validators are away: they neither propose nor observe.

    Only the first two propose; the others show themselves by what they observe.
    """

    def __init__(self, net, ledgers, away):
        self.net, self.ledgers, self.away = net, ledgers, {net.keys[i].address for i in away}
        self.count = 0

    @property
    def first(self):
        return self.ledgers[0]

    def here(self):
        return [key for key in self.net.validating(self.first) if key.address not in self.away]

    async def decide(self, *, wait_s=20.0, observing=None):
        """A block with a record that everybody who is here observed."""
        await trio.sleep(wait_s)
        self.count += 1
        signed = self.net.record(f"number {self.count}")
        for each in self.ledgers:
            self.net.observe_all(each, signed, keys=observing or self.here())
        by = self.count % 2
        others = [ledger for ledger in self.ledgers if ledger is not self.ledgers[by]]
        return (await self.net.decide(self.ledgers[by], *others, by=by)).block

    async def move(self, action):
        keys = self.here()
        now = self.net.clock.now_ms()
        motion = Motion(action=action, proposer=keys[0].address, created_ms=now, expires_ms=now + 60_000)
        approvals = tuple(approve(key, self.net.network, motion) for key in keys)
        for each in self.ledgers:
            await each.add_motion(GovernanceTransaction(motion=motion, approvals=approvals))
        await self.decide()


@pytest.fixture
async def roll(ledger_network, autojump_clock):
    async def of(size=7, away=(), minutes=MINUTES):
        net = ledger_network(size)
        net.genesis = replace(net.genesis, policy=replace(net.genesis.policy, absence_minutes=minutes))
        net.network = net.genesis.network_id()
        return Roll(net, [await net.open(), await net.open(by=1)], away)

    return of


async def test_two_of_seven_leave_together_after_a_whole_window_and_come_back_by_motion(roll, autojump_clock) -> None:
    seven = await roll(away=(2, 5))
    boundary = None
    while seven.first.validators.epoch == 0:
        boundary = await seven.decide()
    assert boundary.header.ends_epoch
    assert boundary.header.height >= 4 * 7, "everybody had turns"
    assert boundary.header.time_ms - seven.net.genesis.created_ms >= MINUTES * 60_000
    state = seven.first.registry.state
    assert set(state.absent) == seven.away
    assert set(seven.first.validators.members) == set(seven.net.validators.members) - seven.away
    assert all(state.get(address).weight == 1 for address in seven.away), "still a member, not suspended"
    assert {ledger.registry.state.digest(seven.net.network) for ledger in seven.ledgers} == {
        boundary.header.registry_hash
    }
    assert state.attendance == Attendance.begin(boundary.header.height, boundary.header.time_ms)

    back = seven.net.keys[2]
    seven.away.discard(back.address)
    await seven.move(Admit(member=state.get(back.address)))
    assert (seven.first.validators.epoch, seven.first.validators.size) == (2, 6)
    assert back.address in seven.first.validators


async def test_nobody_leaves_a_network_that_stands_still(roll, autojump_clock) -> None:
    """Three of seven are gone for an hour, which is no quorum; everybody is back in the next block."""
    seven = await roll()
    for _ in range(30):
        await seven.decide(wait_s=1.0)
    assert seven.first.registry.state.attendance.minutes <= 1
    await trio.sleep(3600)
    for _ in range(30):
        await seven.decide(wait_s=1.0)
    assert seven.first.validators.epoch == 0
    assert seven.first.registry.state.absent == ()


@pytest.mark.parametrize("number", [1, 2])
async def test_who_shows_itself_stays(roll, autojump_clock, number) -> None:
    """By its own blocks, whoever leaves out its observations; by its observations, if its blocks never get through."""
    five = await roll(size=5)
    others = [key for i, key in enumerate(five.net.keys) if i != number]
    for _ in range(25):
        await five.decide(observing=others if number == 1 else five.net.keys)
    assert five.first.validators.epoch == 0
    assert five.first.registry.state.attendance.since > 0, "a window went by"


async def test_a_network_of_four_keeps_its_absent(roll, autojump_clock) -> None:
    four = await roll(size=4, away=(1,))
    for _ in range(20):
        await four.decide()
    assert four.first.validators.epoch == 0
    assert four.first.registry.state.attendance.since > 0


async def test_a_policy_may_let_nobody_leave(roll, autojump_clock) -> None:
    seven = await roll(away=(2, 5), minutes=0)
    for _ in range(30):
        await seven.decide()
    assert seven.first.validators.epoch == 0
    assert seven.first.registry.state.attendance == Attendance()


async def test_every_epoch_begins_a_window(roll, autojump_clock) -> None:
    """One block before the window's end another epoch begins: whoever is away stays for a whole window of that."""
    six = await roll(size=6, away=(2,))
    for _ in range(4 * 6 - 1):
        await six.decide()
    await six.move(Suspend(address=six.net.keys[5].address))
    assert six.first.validators.epoch == 1
    begun = six.first.height
    while six.first.validators.epoch == 1:
        await six.decide()
    assert six.first.registry.state.absent == (six.net.keys[2].address,)
    assert six.first.height - begun == 4 * 5


async def test_a_proposer_cannot_evict_by_its_own_word(roll, autojump_clock) -> None:
    """A header whose members are others than the rule gives is refused, be it one more absent or one fewer."""
    seven = await roll()
    block = await seven.first.propose(1, seven.net.clock.now_ms(), seven.net.keys[0].address)
    forged = seven.first.registry.state.with_absent([seven.net.keys[3].address])
    header = replace(block.header, registry_hash=forged.digest(seven.net.network))
    with pytest.raises(BlockError, match=r"header\.registry_hash"):
        await seven.ledgers[1].validate(Block(header=header, body=block.body), seven.net.clock.now_ms(), Round(0))


async def test_attendance_survives_a_restart(roll, autojump_clock, tmp_path) -> None:
    five = await roll(size=5, away=(2,))
    kept = await five.net.open(tmp_path / "ledger.sqlite", by=3)
    five.ledgers.append(kept)
    for _ in range(9):
        await five.decide()
    before = kept.registry.state.attendance
    assert before.minutes > 0
    assert five.net.keys[2].address not in before.seen
    await kept.close()
    assert kept_in(tmp_path) == {"attendance"}, "members are written when something about them changes"
    five.ledgers[-1] = kept = await five.net.open(tmp_path / "ledger.sqlite", by=3)
    assert kept.registry.state.attendance == before
    for _ in range(11):
        await five.decide()
    assert kept.validators.epoch == 1
    state = kept.registry.state
    await kept.close()
    assert kept_in(tmp_path) == {"attendance", "registry"}
    kept = await five.net.open(tmp_path / "ledger.sqlite", by=3)
    assert kept.registry.state == state


def kept_in(folder: Path) -> set[str]:
    """What the ledger's file holds of the registry."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as file:
        query = "SELECT name FROM meta WHERE name IN ('attendance', 'registry')"
        return {name for (name,) in file.execute(query)}
