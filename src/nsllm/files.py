"""Files that hold keys, settings and state: private modes, atomic replacement, errors that name the path."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nsllm.errors import OwnFault, UsageError

LOCK_POLL_S: Final = 0.05


def private_folder(path: Path) -> Path:
    """`path` as a folder of mode 0700, made if it is missing.

    Raises:
        UsageError: the path is a file, or cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise UsageError(f"cannot use folder {path}: {error.strerror}", hint="choose another --data-dir") from None
    return path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `data` in one step, synced to disk: after a crash either the old or the new file stands.

    A device or a pipe, such as /dev/null, stays what it is and is written to.

    Raises:
        OwnFault: no space, no permission; the old file is untouched.
    """
    name = ""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            path.write_bytes(data)
            return
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise OwnFault(f"cannot write {path}: {error.strerror}", hint="free some space or check permissions") from None


def sync_data(handle: int) -> None:
    """Return once the file's bytes and length are on disk; its times need not be. Raises `OSError`."""
    getattr(os, "fdatasync", os.fsync)(handle)  # macOS has the latter only


def read_bounded(path: Path, *, limit_bytes: int) -> bytes:
    """The file's bytes.

    Raises:
        UsageError: missing, unreadable, or longer than `limit_bytes`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise UsageError(f"{path} is longer than {limit_bytes} bytes")
    return data


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one process at a time is inside (flock(2)); a killed one leaves it. Blocks.

    Args:
        path: a folder, or a file made for this.
        waiting: called again and again while another process is inside; may raise to give up.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(handle)
