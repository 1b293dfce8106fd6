"""Files: private modes, atomic replacement, clear errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsllm.errors import OwnFault, UsageError
from nsllm.files import locked, private_folder, read_bounded, write_atomic


def test_private_folders_and_files(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b")
    assert folder.stat().st_mode & 0o777 == 0o700
    write_atomic(folder / "key", b"x")
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    assert read_bounded(folder / "key", limit_bytes=1) == b"x"


def test_a_file_in_the_way_and_a_long_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(UsageError, match="cannot use folder"):
        private_folder(tmp_path / "file")
    with pytest.raises(UsageError, match="longer than 4"):
        read_bounded(tmp_path / "file", limit_bytes=4)
    with pytest.raises(UsageError, match="cannot read"):
        read_bounded(tmp_path / "missing", limit_bytes=4)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OwnFault, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_one_process_at_a_time_is_inside(tmp_path):
    class GaveUpError(Exception):
        pass

    def give_up():
        raise GaveUpError

    for place in (tmp_path, tmp_path / "lock"):
        with locked(place, give_up), pytest.raises(GaveUpError), locked(place, give_up):
            pass
        with locked(place, give_up):
            pass


def test_a_device_is_written_to_and_stays_one(tmp_path):
    link = tmp_path / "nothing"
    link.symlink_to(os.devnull)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(link, b"x")
    write_atomic(pipe, b"y")
    assert os.read(reader, 10) == b"y"
    os.close(reader)
    assert link.is_char_device()
    assert pipe.is_fifo()
