"""A peer's own log: what it acknowledges stays, and its checkpoints prove entries and growth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from nsllm.clock import TrioClock
from nsllm.crypto import MemberKey, keccak256
from nsllm.errors import EncodingError, SignatureError
from nsllm.governance.errors import DamageError, LogError, StorageError
from nsllm.governance.peer_log import PeerLog, verify_entry, verify_growth
from nsllm.ids import NetworkId
from nsllm.offload import InlineOffload

KEY = MemberKey(keccak256(b"peer"))
NETWORK = NetworkId(keccak256(b"network"))


async def open_log(path=None, **options) -> PeerLog:
    return await PeerLog.open(path, KEY, NETWORK, clock=TrioClock(1000), offload=InlineOffload(), **options)


async def test_entries_and_growth_are_proved_by_signed_checkpoints(autojump_clock) -> None:
    log = await open_log()
    checkpoints = []
    for i in range(9):
        assert await log.append("answered", {"record": keccak256(b"%d" % i), "tokens": i}, private=i % 2 == 0) == i
        checkpoints.append(log.checkpoint())
    entries = await log.entries(0, 100)
    last = checkpoints[-1]
    for i, entry in enumerate(entries):
        verify_entry(entry, await log.inclusion(i, 9), last, NETWORK, KEY.address)
    for old in checkpoints:
        size = old.checkpoint.size
        verify_growth(old, last, await log.consistency(size, 9), NETWORK, KEY.address)
    assert len({entry.salt for entry in entries}) == 9


async def test_what_does_not_hold_is_refused(autojump_clock) -> None:
    log = await open_log()
    for i in range(3):
        await log.append("answered", {"tokens": i}, private=False)
    old = log.checkpoint()
    await log.append("answered", {"tokens": 3}, private=False)
    new = log.checkpoint()
    entry = (await log.entries(1, 1))[0]
    inclusion = await log.inclusion(1, 4)
    with pytest.raises(LogError, match="root"):
        verify_entry(msgspec.structs.replace(entry, private=True), inclusion, new, NETWORK, KEY.address)
    with pytest.raises(LogError, match="log of 4, the checkpoint has 3"):
        verify_entry(entry, inclusion, old, NETWORK, KEY.address)
    with pytest.raises(LogError, match="expected"):
        verify_entry(entry, inclusion, new, NETWORK, MemberKey(keccak256(b"other")).address)
    with pytest.raises(SignatureError):
        verify_entry(entry, inclusion, new, NetworkId(keccak256(b"elsewhere")), KEY.address)
    with pytest.raises(LogError):
        verify_growth(old, new, [], NETWORK, KEY.address)
    with pytest.raises(LogError, match="no entry 4"):
        await log.inclusion(4, 5)
    with pytest.raises(LogError, match="no consistency"):
        await log.consistency(0, 4)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Answered", {}),
        ("answered", {"x": 1.5}),
        ("answered", {"x": "y" * 131}),
        ("answered", {"Name": 1}),
        ("answered", {f"f{i}": i for i in range(17)}),
    ],
)
async def test_content_and_bad_names_do_not_fit(autojump_clock, kind, fields) -> None:
    log = await open_log()
    with pytest.raises(EncodingError):
        await log.append(kind, fields, private=False)
    assert log.size == 0


CHILD = """
import sys, trio
from pathlib import Path
from nsllm.clock import SystemClock
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.peer_log import PeerLog
from nsllm.ids import NetworkId
from nsllm.offload import ThreadOffload

async def main():
    log = await PeerLog.open(
        Path(sys.argv[1]), MemberKey(keccak256(b"peer")), NetworkId(keccak256(b"network")),
        clock=SystemClock(), offload=ThreadOffload(),
    )
    while True:
        index = await log.append("answered", {"tokens": log.size}, private=False)
        print(index, log.root.hex(), flush=True)

trio.run(main)
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path) -> None:
    path = tmp_path / "log.sqlite"
    with subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(25)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
    complete = [line.split() for line in lines if line.endswith("\n")]
    log = await open_log(path)
    index, root = complete[-1]
    assert log.size >= int(index) + 1
    assert log._tree.root(int(index) + 1).hex() == root
    await log.append("answered", {}, private=False)
    await log.close()


async def test_a_damaged_file_is_said_and_only_moved_aside_on_demand(tmp_path, autojump_clock) -> None:
    path = tmp_path / "log.sqlite"
    log = await open_log(path)
    await log.append("answered", {}, private=False)
    await log.close()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DamageError, match="damaged"):
        await open_log(path)
    log = await open_log(path, recover=True)
    assert log.notice is not None
    assert "moved to" in log.notice
    assert log.size == 0
    assert [p.name for p in tmp_path.glob("*.damaged-*")] == ["log.sqlite.damaged-1000"]


async def test_a_lost_row_is_found(tmp_path, autojump_clock) -> None:
    path = tmp_path / "log.sqlite"
    log = await open_log(path)
    await log.append("answered", {}, private=False)
    log._database.connection.execute("DELETE FROM peer_log_entry")
    await log.close()
    with pytest.raises(DamageError, match="1 leaves and 0 entries"):
        await open_log(path)
    assert (await open_log(path, recover=True)).notice is not None


async def test_a_full_disk_logs_nothing_and_can_be_tried_again(tmp_path, autojump_clock) -> None:
    log = await open_log(tmp_path / "log.sqlite")
    pages = log._database.connection.execute("PRAGMA page_count").fetchone()[0]
    log._database.connection.execute(f"PRAGMA max_page_count = {pages}")
    big = {f"f{i}": "x" * 128 for i in range(16)}
    with pytest.raises(StorageError, match="full"):
        for _ in range(100):
            await log.append("answered", big, private=False)
    stored = log.size
    assert len(await log.entries(0, 1000)) == stored
    log._database.connection.execute("PRAGMA max_page_count = 100000")
    assert await log.append("answered", big, private=False) == stored
