"""Waiting motions survive a restart and a kill -9 until they expire; no approval that was acknowledged is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from nsllm.governance.errors import MotionError, StorageError
from nsllm.governance.motion import Admit, GovernanceTransaction, Motion, Retract, Revoke, Suspend, approve
from nsllm.ids import Digest, TimeMs

LIVES_OF = Path(__file__).parents[1] / "lives.py"
SCRIPT = Path(__file__).with_name("dying_motions.py")
LIVES = 7
TERM_MS = 60_000


def moved(net: Any, action: Any, *signers: int, by: int = 0, term_ms: int = TERM_MS) -> GovernanceTransaction:
    now = net.clock.now_ms()
    motion = Motion(action=action, proposer=net.keys[by].address, created_ms=now, expires_ms=TimeMs(now + term_ms))
    keys = sorted((net.keys[each] for each in {by, *signers}), key=lambda key: key.address)
    return GovernanceTransaction(motion=motion, approvals=tuple(approve(key, net.network, motion) for key in keys))


@pytest.fixture
async def reopen(net: Any, tmp_path: Path) -> Any:
    opened: list[Any] = []

    async def again() -> Any:
        for ledger in opened:
            await ledger.close()
        opened[:] = [await net.open(tmp_path / "ledger.sqlite")]
        return opened[0]

    return again


@pytest.mark.timeout(120)
@pytest.mark.parametrize("statement", ["BEGIN", "DELETE FROM waiting_motion", "INSERT INTO waiting_motion", "COMMIT"])
def test_killed_at(statement: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, LIVES_OF, SCRIPT, tmp_path, statement, str(LIVES)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == LIVES - 1
    acknowledged = set((tmp_path / "tap").read_text().splitlines())
    waiting = (tmp_path / "waiting").read_text().splitlines()
    assert len(acknowledged) == 2 * (LIVES - 1)
    assert acknowledged <= set(waiting)
    assert len(waiting) == len(set(waiting))


async def test_motions_and_their_approvals_are_there_after_a_restart(net, autojump_clock, reopen) -> None:
    ledger = await reopen()
    first, second = (
        moved(net, Suspend(address=net.keys[3].address)),
        moved(net, Retract(record=Digest(bytes(32))), by=1),
    )
    more = GovernanceTransaction(motion=first.motion, approvals=(approve(net.keys[2], net.network, first.motion),))
    for transaction in (first, second, more):
        assert await ledger.add_motion(transaction)
    before = ledger.motions()
    assert [len(each.approvals) for each in before] == [2, 1]
    ledger = await reopen()
    assert ledger.motions() == before
    assert not await ledger.add_motion(more), "known"
    last = GovernanceTransaction(motion=first.motion, approvals=(approve(net.keys[1], net.network, first.motion),))
    assert await ledger.add_motion(last)
    assert await ledger.due_in() == 0.0, "carried, with approvals from before the restart"
    await net.decide(ledger)
    ledger = await reopen()
    assert first.motion not in [each.motion for each in ledger.motions()], "a block holds it"
    assert not await ledger.add_motion(first)


async def test_motions_of_former_validators_and_expired_ones_do_not_come_back(net, autojump_clock, reopen) -> None:
    ledger = await reopen()
    theirs, ours = (
        moved(net, Revoke(address=net.keys[1].address), by=3),
        moved(net, Revoke(address=net.keys[1].address), 3),
    )
    brief = moved(net, Revoke(address=net.keys[2].address), by=1, term_ms=5_000)
    for transaction in (theirs, ours, brief, moved(net, Suspend(address=net.keys[3].address), 1, 2)):
        assert await ledger.add_motion(transaction)
    await net.decide(ledger)
    assert net.keys[3].address not in ledger.validators
    ledger = await reopen()
    assert [each.motion for each in ledger.motions()] == [ours.motion, brief.motion]
    assert [len(each.approvals) for each in ledger.motions()] == [1, 1], "theirs counts no more"
    await trio.sleep(6)
    assert [each.motion for each in ledger.motions()] == [ours.motion]
    assert await ledger.add_motion(moved(net, Revoke(address=net.keys[2].address)))
    count = "SELECT count(*) FROM waiting_motion"
    assert ledger._state._database.connection.execute(count).fetchone()[0] == 2, "what expired is gone from the disk"


async def test_a_motion_that_nobody_could_approve_in_time_costs_no_write(net, autojump_clock, reopen) -> None:
    ledger = await reopen()
    with pytest.raises(MotionError, match="within 5000 ms"):
        await ledger.add_motion(moved(net, Revoke(address=net.keys[2].address), term_ms=4_999))


async def test_a_motion_that_cannot_be_kept_is_not_taken(net, autojump_clock, reopen, monkeypatch) -> None:
    ledger = await reopen()

    def full(*_: object) -> None:
        raise StorageError("ledger: database or disk is full", hint="free some space")

    transaction = moved(net, Suspend(address=net.keys[3].address))
    with monkeypatch.context() as patch:
        patch.setattr(ledger._state, "keep_motion", full)
        with pytest.raises(StorageError):
            await ledger.add_motion(transaction)
    assert ledger.motions() == ()
    assert await ledger.add_motion(transaction)


async def test_approvals_that_come_at_once_are_all_kept(net, autojump_clock, reopen) -> None:
    ledger = await reopen()
    first = moved(net, Admit(member=net.member(net.generator, ("contributor",))))
    async with trio.open_nursery() as nursery:
        for key in net.keys:
            approval = approve(key, net.network, first.motion)
            approvals = tuple(sorted({*first.approvals, approval}, key=lambda each: each.validator))
            nursery.start_soon(ledger.add_motion, GovernanceTransaction(motion=first.motion, approvals=approvals))
    assert len(ledger.motions()[0].approvals) == 4
    assert [len(each.approvals) for each in (await reopen()).motions()] == [4]
