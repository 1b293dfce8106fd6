"""Power cuts at every write, truncation, rename and sync of log and guard: no second signature on another value, ever.

The files are real; what a disk may have lost is modelled. Content is certain once its file is synced, a name once its
folder is; of the rest a power cut keeps nothing, everything, or half of what was appended (a sector is never torn, and
the guard's record is one). The victim is cut off after its k-th call, for every k, starts again from what the disk has
kept, and the height goes on. Judged is the union of everything that it ever sent.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio
from honesty import judge_votes, locks_alone, said_by

from nsllm import files
from nsllm.consensus import guard_file
from nsllm.consensus import wal as wal_module
from nsllm.consensus.events import SigningRefused
from nsllm.consensus.message import decode_message
from nsllm.consensus.vote import Vote

VICTIM = 2
HEIGHTS = 2
REMAINS = ("nothing", "half", "everything")


class Disk:
    """Stands in for `os` under the log and the guard; counts what happens in one folder, and cuts there."""

    def __init__(self, kit, folder: Path) -> None:
        self.kit = kit
        self.folder = folder
        self.calls: list[str] = []
        self.cut_after: int | None = None
        self.certain: dict[str, bytes] = {}
        """What stands in the folder for certain, by name."""
        self.synced: dict[str, bytes] = {}
        """Content that is synced, by the name that a file has or is going to have."""
        self._names: dict[int, str] = {}

    # `os`, as far as it is used

    def __getattr__(self, name: str):
        return getattr(os, name)

    def open(self, path, *more):
        handle = os.open(path, *more)
        if Path(path).parent == self.folder:
            self._names[handle] = Path(path).name
            self._happened("open")
        elif Path(path) == self.folder:
            self._names[handle] = ""
        return handle

    def close(self, handle: int) -> None:
        self._names.pop(handle, None)
        os.close(handle)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        done = os.pwrite(handle, data, offset)
        if handle in self._names:
            self._happened("write")
        return done

    def ftruncate(self, handle: int, length: int) -> None:
        os.ftruncate(handle, length)
        if handle in self._names:
            self._happened("truncate")

    def fsync(self, handle: int) -> None:
        """Nothing reaches a real disk here: the model is what counts."""
        about = os.fstat(handle)
        if os.path.samestat(about, self.folder.stat()):
            present = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
            self.certain = {name: self.synced.get(name, b"") for name in present}
            self._happened("sync of the folder")
        for path in [path for path in self.folder.iterdir() if os.path.samestat(about, path.stat())]:
            self.synced[path.name] = path.read_bytes()
            if path.name in self.certain:
                self.certain[path.name] = self.synced[path.name]
            self._happened("sync")

    fdatasync = fsync

    def rename(self, old: Path, new: Path) -> None:
        old_name = Path(old).name
        os.rename(old, new)  # noqa: PTH104 - `Path.replace` is this
        if Path(new).parent == self.folder:
            self.synced[Path(new).name] = self.synced.pop(old_name)
            self._happened("rename")

    # power

    def _happened(self, call: str) -> None:
        self.calls.append(call)
        if len(self.calls) - 1 == self.cut_after:
            raise self.kit.Crash

    def lose_power(self, remains: str) -> None:
        """Leave in the folder what a power cut leaves."""
        self.cut_after = None
        self._names.clear()
        if remains != "everything":
            for path in self.folder.iterdir():
                certain = self.certain.get(path.name)
                written = path.read_bytes()
                if path.name.startswith(".") or certain is None:
                    path.unlink()
                elif remains == "half" and path.name == "wal":
                    known = len(certain) if written.startswith(certain) else 0
                    path.write_bytes(written[: (known + len(written) + 1) // 2])
                else:
                    path.write_bytes(certain)
        self.certain = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.synced = dict(self.certain)


@pytest.fixture
def disk_of(monkeypatch, kit):
    def make(folder: Path) -> Disk:
        disk = Disk(kit, folder)
        for module in (wal_module, guard_file, files):
            monkeypatch.setattr(module, "os", disk)
        monkeypatch.setattr(Path, "replace", lambda old, new: disk.rename(old, new))  # noqa: PLW0108 - binds `old`
        return disk

    return make


async def play(town, disk, remains: str, cut_after: int | None) -> None:
    victim = town.peers[VICTIM]
    disk.cut_after = cut_after
    locks_alone(town, town.peers[VICTIM])

    async def live(task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        while True:
            try:
                await victim.run()
            except town.Crash:
                pass
            else:
                if not isinstance(victim.error, town.Crash):
                    return
            disk.lose_power(remains)

    async with trio.open_nursery() as nursery:
        await nursery.start(town.mesh.run)
        for peer in town.peers:
            await nursery.start(live if peer is victim else peer.run)
        town.want(HEIGHTS)
        await town.until_height(HEIGHTS, timeout_s=600)
        nursery.cancel_scope.cancel()


def judge(town, victim) -> None:
    judge_votes(town, victim)
    refused = [event for event in victim.events if isinstance(event, SigningRefused)]
    assert not refused, "its vote was never lost either"


@pytest.mark.parametrize("remains", REMAINS)
async def test_a_power_cut_at_every_boundary(autojump_clock, house, kit, disk_of, tmp_path, remains):
    town = house(4)
    town.Crash = kit.Crash
    disk = disk_of(town.peers[VICTIM].folder)
    await play(town, disk, "everything", None)
    judge(town, town.peers[VICTIM])
    calls = disk.calls
    assert set(calls) == {"open", "write", "truncate", "sync", "sync of the folder", "rename"}
    assert calls.count("sync") > 6
    locked = [vote for vote in said_by(town, town.keys[VICTIM])[1] if vote.lock is not None]
    assert locked, "it votes under a lock too"
    for number in range(len(calls)):
        town = house(4)
        town.Crash = kit.Crash
        disk = disk_of(town.peers[VICTIM].folder)
        await play(town, disk, remains, number)
        assert disk.cut_after is None, f"the power was never cut at call {number} of {len(calls)}"
        judge(town, town.peers[VICTIM])


@pytest.mark.parametrize("trust_the_log", [False, True])
async def test_a_restored_log_signs_nothing_else(autojump_clock, house, kit, monkeypatch, trust_the_log):
    """A copy of the log from before the lock comes back: the driver abstains; if it did not, the guard refuses."""
    town = house(4)
    victim = town.peers[VICTIM]
    if trust_the_log:
        monkeypatch.setattr("nsllm.consensus.guard.SignerGuard.has_signed_beyond", lambda *_about: False)
    locks_alone(town, town.peers[VICTIM])
    log, copy = victim.folder / "wal", victim.folder.parent / "copy"
    victim.checkpoint = lambda moment: copy.exists() or shutil.copy(log, copy)
    async with trio.open_nursery() as nursery:
        await kit.start(nursery, town)
        town.want(1)
        await town.until(lambda: victim.driver._guard.last is not None and victim.driver._guard.last.step == 3)
        await victim.stop()
        before = len(town.mesh.log)
        shutil.copy(copy, log)
        locks_alone(town, town.peers[VICTIM], forgetful=True)
        await nursery.start(victim.run)
        await town.until_height(1)
        assert any(isinstance(event, SigningRefused) for event in victim.events)
        reasons = [event.reason for event in victim.events if isinstance(event, SigningRefused)]
        assert any(("breaks the lock" if trust_the_log else "does not hold") in reason for reason in reasons)
        town.want(2)
        await town.until_height(2)
        assert not victim.driver.status().abstaining
        nursery.cancel_scope.cancel()
    after = [decode_message(raw) for frm, _, raw in town.mesh.log[before:] if frm == victim.address]
    votes = [body for body in after if isinstance(body, Vote) and body.validator == victim.address and body.height == 1]
    if not trust_the_log:
        known = said_by(town, victim.key)[1]
        assert {vote for vote in votes if vote.round > 0} == set(), "it only says again what it said before"
        assert set(votes) <= known
    judge_votes(town, victim)
