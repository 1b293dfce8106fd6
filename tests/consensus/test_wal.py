"""The write-ahead log: what was appended comes back, a torn tail is cut, damage is refused, a full disk is said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.consensus import wal as wal_module
from nsllm.consensus.errors import WalError
from nsllm.consensus.wal import HEAD, MAX_ENTRY_BYTES, WriteAheadLog
from nsllm.errors import OwnFault

ENTRIES = [
    b"first",
    b"",
    b"\xf1WAL inside an entry",
    b"x" * 100 + wal_module._frame(4, b"a frame inside an entry") + b"x" * 50,
]


def write(path, entries):
    log = WriteAheadLog(path)
    for entry in entries:
        log.append(entry)
    log.sync()
    log.close()


def read(path):
    log = WriteAheadLog(path)
    try:
        return list(log.recovered), log.cut_bytes
    finally:
        log.close()


def test_what_was_appended_comes_back(tmp_path):
    write(tmp_path / "wal", ENTRIES)
    assert read(tmp_path / "wal") == (ENTRIES, 0)
    log = WriteAheadLog(tmp_path / "wal")
    log.append(b"more")
    log.close()
    assert read(tmp_path / "wal") == ([*ENTRIES, b"more"], 0)
    assert (tmp_path / "wal").stat().st_mode & 0o777 == 0o600


def test_the_file_ends_at_every_byte_of_the_last_record(tmp_path):
    write(tmp_path / "whole", ENTRIES)
    whole = (tmp_path / "whole").read_bytes()
    start = len(whole) - HEAD.size - len(ENTRIES[-1])
    for end in range(start, len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:end])
        assert read(path) == (ENTRIES[:-1], end - start)
        assert path.stat().st_size == start, "the torn tail is gone"
        log = WriteAheadLog(path)
        log.append(b"after")
        log.close()
        assert read(path) == ([*ENTRIES[:-1], b"after"], 0)


def test_zeros_at_the_end_are_a_torn_tail(tmp_path):
    path = tmp_path / "wal"
    write(path, ENTRIES)
    path.write_bytes(path.read_bytes() + bytes(5000))
    assert read(path) == (ENTRIES, 5000)


def test_damage_before_the_tail_is_refused_at_every_byte(tmp_path):
    path = tmp_path / "wal"
    write(path, ENTRIES)
    whole = path.read_bytes()
    start = len(whole) - HEAD.size - len(ENTRIES[-1])
    for place in range(start):
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(WalError, match="damaged at byte"):
            WriteAheadLog(path)
        assert path.read_bytes() == damaged, "a refused log is left as it is"


def test_damage_in_the_last_record_is_a_torn_tail(tmp_path):
    path = tmp_path / "wal"
    write(path, ENTRIES)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert read(path)[0] == ENTRIES[:-1]


def test_a_missing_record_is_damage(tmp_path):
    """The sequence numbers show a record that was cut out whole."""
    path = tmp_path / "wal"
    write(path, [b"a" * 10, b"b" * 10, b"c" * 10])
    whole = path.read_bytes()
    size = HEAD.size + 10
    path.write_bytes(whole[:size] + whole[2 * size :])
    with pytest.raises(WalError):
        WriteAheadLog(path)


def test_reset_forgets(tmp_path):
    log = WriteAheadLog(tmp_path / "wal")
    log.append(b"old height")
    log.reset()
    log.append(b"new height")
    log.close()
    assert read(tmp_path / "wal") == ([b"new height"], 0)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_is_a_clear_fault(tmp_path, monkeypatch, call):
    log = WriteAheadLog(tmp_path / "wal")
    log.append(b"before")
    log.sync()
    log.append(b"maybe")
    whole = getattr(os, call)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wal_module.os, call, full)
    with pytest.raises(OwnFault, match=r"cannot write .*No space left.*free some space"):
        log.append(b"not this") if call == "pwrite" else log.sync()
    monkeypatch.setattr(wal_module.os, call, whole)
    if call == "fdatasync":
        with pytest.raises(OwnFault, match="failed before"):
            log.append(b"after a failed fsync nothing is certain")
    else:
        log.append(b"there is space again")
    log.close()
    kept, cut = read(tmp_path / "wal")
    assert cut == 0
    assert kept == ([b"before", b"maybe", b"there is space again"] if call == "pwrite" else [b"before", b"maybe"])


def test_a_write_cut_short_leaves_nothing_behind(tmp_path, monkeypatch):
    """The disk takes half a frame and is full then."""
    log = WriteAheadLog(tmp_path / "wal")
    log.append(b"before")
    whole = os.pwrite
    calls = []

    def half(file, data, offset):
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(file, data[: len(data) // 2], offset)

    monkeypatch.setattr(wal_module.os, "pwrite", half)
    with pytest.raises(OwnFault):
        log.append(b"y" * 100)
    monkeypatch.setattr(wal_module.os, "pwrite", whole)
    log.close()
    assert read(tmp_path / "wal") == ([b"before"], 0)


def test_bounds_and_closing(tmp_path):
    log = WriteAheadLog(tmp_path / "wal")
    with pytest.raises(OwnFault, match="beyond the log's bounds"):
        log.append(bytes(MAX_ENTRY_BYTES + 1))
    log.close()
    log.close()
    with pytest.raises(OwnFault, match="closed"):
        log.append(b"late")
    with pytest.raises(OwnFault, match="cannot open"):
        WriteAheadLog(tmp_path / "missing" / "wal")


def test_appended_entries_survive_a_killed_process(tmp_path):
    script = (
        "import os,sys,signal\nfrom pathlib import Path\nfrom nsllm.consensus.wal import WriteAheadLog\n"
        f"log = WriteAheadLog(Path({str(tmp_path / 'wal')!r}))\n"
        "log.append(b'one'); log.append(b'two')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    assert read(tmp_path / "wal") == ([b"one", b"two"], 0)


@settings(max_examples=60, deadline=None)
@given(entries=st.lists(st.binary(max_size=40), max_size=6), cut=st.integers(0, 400))
def test_any_prefix_of_the_file_gives_a_prefix_of_the_entries(tmp_path_factory, entries, cut):
    path = tmp_path_factory.mktemp("wal") / "wal"
    write(path, entries)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    recovered, _ = read(path)
    assert recovered == entries[: len(recovered)]
    assert sum(HEAD.size + len(e) for e in entries[: len(recovered)]) <= min(cut, len(whole))
