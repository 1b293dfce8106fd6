"""The guard's file: one small record, written over one of two sectors in turn, on disk before `write` returns.

A sector (512 bytes) holds: marker (4 bytes), number of the write (big-endian u64), length of the record and CRC-32 of
record and what stands before it (u32 each), record. Disks write a sector whole or not at all, so a power cut leaves the
old record or the new one. Sectors that do not follow each other, or are neither sound nor empty, are damage: nobody
knows then what was written last, and the file refuses to be read. Replacing a file would cost three times as long.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final

from nsllm.consensus.errors import GuardError
from nsllm.errors import OwnFault, UsageError
from nsllm.files import read_bounded, sync_data, write_atomic

SECTOR_BYTES: Final = 512
FILE_BYTES: Final = 2 * SECTOR_BYTES
MARKER: Final = b"\xf1GRD"
HEAD: Final = struct.Struct(">4sQII")
MAX_RECORD_BYTES: Final = SECTOR_BYTES - HEAD.size


class GuardFile:
    """The last record at `path`; one owner.

    Raises:
        GuardError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number, self.record = self._load()
        """The record that stands in the file; None before the first."""

    def write(self, record: bytes) -> None:
        """Return once `record` is on disk.

        Raises:
            OwnFault: the disk refused, now or before; which record stands there is known after a restart only.
        """
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"guard's record of {len(record)} bytes, a sector takes {MAX_RECORD_BYTES}")
        if self._number < 0:
            raise OwnFault(f"{self._path} failed before", hint="restart the peer")
        number = self._number + 1
        sector = _sector(number, record)
        if number == 1:
            write_atomic(self._path, bytes(SECTOR_BYTES) + sector)
        else:
            self._overwrite(number % 2 * SECTOR_BYTES, sector)
        self._number, self.record = number, record

    def _overwrite(self, offset: int, sector: bytes) -> None:
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.pwrite(handle, sector, offset)
                sync_data(handle)
            finally:
                os.close(handle)
        except OSError as error:
            self._number = -1
            raise OwnFault(
                f"cannot write {self._path}: {error.strerror}", hint="free some space, then restart the peer"
            ) from None
        if written != len(sector):
            self._number = -1
            raise OwnFault(f"{self._path}: {written} of {len(sector)} bytes written", hint="restart the peer")

    def _load(self) -> tuple[int, bytes | None]:
        if not self._path.exists():
            return 0, None
        try:
            data = read_bounded(self._path, limit_bytes=FILE_BYTES)
        except UsageError as error:
            raise self._damage(str(error)) from None
        if len(data) != FILE_BYTES:
            raise self._damage(f"{len(data)} bytes, expected {FILE_BYTES}")
        even, odd = (self._parse(data[start : start + SECTOR_BYTES]) for start in (0, SECTOR_BYTES))
        older, newer = sorted((even, odd), key=lambda found: found[0])
        if newer[0] != older[0] + 1 or newer is not (odd if newer[0] % 2 else even):
            raise self._damage(f"writes {even[0]} and {odd[0]} do not follow each other")
        return newer

    def _parse(self, sector: bytes) -> tuple[int, bytes]:
        """Number and record of a sector; number 0 if it was never written."""
        if not any(sector):
            return 0, b""
        marker, number, length, crc = HEAD.unpack_from(sector)
        record = sector[HEAD.size : HEAD.size + length]
        if marker != MARKER or length > MAX_RECORD_BYTES or crc != _crc(sector[: HEAD.size - 4] + record):
            raise self._damage("a sector is neither sound nor empty")
        return number, record

    def _damage(self, what: str) -> GuardError:
        return GuardError(
            f"{self._path} is damaged: {what}",
            hint="restore it from a backup; without it this key may sign a contradiction",
        )


def _sector(number: int, record: bytes) -> bytes:
    head = HEAD.pack(MARKER, number, len(record), 0)[:-4]
    return (head + _crc(head + record).to_bytes(4, "big") + record).ljust(SECTOR_BYTES, b"\0")


def _crc(data: bytes) -> int:
    return zlib.crc32(data)
