"""The guard's file: the last record or none, whatever breaks off; damage is told, never guessed around."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.consensus.errors import GuardError
from nsllm.consensus.guard_file import FILE_BYTES, MAX_RECORD_BYTES, SECTOR_BYTES, GuardFile
from nsllm.errors import OwnFault


@given(st.lists(st.binary(max_size=MAX_RECORD_BYTES), min_size=1, max_size=6))
def test_the_last_record_stands(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("guard") / "guard"
    assert GuardFile(path).record is None
    for record in records:
        GuardFile(path).write(record)
        assert GuardFile(path).record == record
        assert path.stat().st_size == FILE_BYTES


def test_one_file_for_many_records(tmp_path):
    file = GuardFile(tmp_path / "guard")
    for number in range(100):
        file.write(b"record %d" % number)
    assert GuardFile(tmp_path / "guard").record == file.record == b"record 99"


@given(st.integers(1, 5), st.integers(0, FILE_BYTES - 1), st.integers(1, 255))
def test_every_changed_byte_of_a_record_is_noticed(tmp_path_factory, writes, position, change):
    path = tmp_path_factory.mktemp("guard") / "guard"
    for number in range(writes):
        GuardFile(path).write(b"record %d" % number)
    data = bytearray(path.read_bytes())
    data[position] ^= change
    path.write_bytes(data)
    try:
        found = GuardFile(path).record
    except GuardError:
        return
    assert found == b"record %d" % (writes - 1)  # it stood behind a record


def test_a_lost_write_is_noticed(tmp_path):
    """The newer sector is as it was two writes ago."""
    path = tmp_path / "guard"
    file = GuardFile(path)
    for number in range(3):
        file.write(b"record %d" % number)
    before = path.read_bytes()
    file.write(b"record 3")
    file.write(b"record 4")
    now = path.read_bytes()
    for mixed in (before[:SECTOR_BYTES] + now[SECTOR_BYTES:], now[SECTOR_BYTES:] + now[:SECTOR_BYTES]):
        path.write_bytes(mixed)
        with pytest.raises(GuardError, match="do not follow"):
            GuardFile(path)


def test_a_record_is_on_disk_before_write_returns(tmp_path, monkeypatch):
    file = GuardFile(tmp_path / "guard")
    file.write(b"first")
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda handle: synced.append(os.pread(handle, 1, 0)), raising=False)
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: synced.append("written") or len(data))
    with pytest.raises(OwnFault):  # a handle that only writes: the look above fails as a disk would
        file.write(b"second")
    assert synced == ["written"]


def test_after_a_failed_write_nothing_more_is_written(tmp_path, monkeypatch):
    path = tmp_path / "guard"
    file = GuardFile(path)
    file.write(b"first")

    def refuse(_handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(OwnFault, match="No space left"):
            file.write(b"second")
    with pytest.raises(OwnFault, match="failed before"):
        file.write(b"third")
    assert GuardFile(path).record in (b"first", b"second")


def test_records_fit_a_sector(tmp_path):
    with pytest.raises(ValueError, match="a sector takes"):
        GuardFile(tmp_path / "guard").write(bytes(MAX_RECORD_BYTES + 1))
