"""The write-ahead log: what happened at the height being decided, on disk before anything is sent.

A file of frames: marker (4 bytes), sequence number, length, CRC-32 of the payload, CRC-32 of the head so far
(big-endian u32 each), payload. An unfinished frame at the end is what a crash leaves behind: it is cut off and
reported. A bad frame with a good one after it is damage: the log refuses to open. The head has a CRC of its own, so
that a frame that was cut short is known as one, whatever its payload (which others wrote) looks like.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nsllm.consensus.errors import WalError
from nsllm.errors import OwnFault
from nsllm.files import sync_data

LOGGER = logging.getLogger(__name__)

MARKER: Final = b"\xf1WAL"
HEAD: Final = struct.Struct(">4sIIII")
MAX_ENTRY_BYTES: Final = 2 * 1024 * 1024
"""A block with a full polka, and room to spare."""
MAX_WAL_BYTES: Final = 256 * 1024 * 1024
"""One height's log; far above what the core's bounds let in."""


class WriteAheadLog:
    """One height's entries, appended and synced. One owner; `close` it.

    Raises:
        WalError: damaged before its tail.
        OwnFault: cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken = False
        self._synced = True
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            data = self._read()
            if not data:
                _sync_folder(path.parent)
        except OSError as error:
            raise OwnFault(f"cannot open {path}: {error.strerror}", hint="check permissions and space") from None
        self._recovered, end = self._parse(data)
        self._sequence = len(self._recovered)
        self._end = end
        self._cut_bytes = len(data) - end
        if self._cut_bytes:
            LOGGER.warning("event=wal_tail_cut path=%s bytes=%d entries=%d", path, self._cut_bytes, self._sequence)
            self._truncate(end)

    @property
    def recovered(self) -> tuple[bytes, ...]:
        """The entries that stood in the file when it was opened, in order."""
        return self._recovered

    @property
    def cut_bytes(self) -> int:
        """Length of the torn tail that was cut off at opening."""
        return self._cut_bytes

    def append(self, entry: bytes) -> None:
        """Write an entry; it survives a killed process now and a power cut after `sync`.

        Raises:
            OwnFault: no space, or an earlier write failed. The entry is not in the log, and nothing of it is left.
        """
        if len(entry) > MAX_ENTRY_BYTES or self._end + HEAD.size + len(entry) > MAX_WAL_BYTES:
            raise OwnFault(f"{self._path}: entry of {len(entry)} bytes at {self._end} is beyond the log's bounds")
        self._refuse_broken()
        frame = _frame(self._sequence, entry)
        try:
            written = 0
            while written < len(frame):
                written += os.pwrite(self._file, frame[written:], self._end + written)
        except OSError as error:
            self._truncate(self._end)
            raise self._fault(error) from None
        self._sequence += 1
        self._end += len(frame)
        self._synced = False

    def sync(self) -> None:
        """Return once all entries are on disk; at once if they are already.

        Raises:
            OwnFault: the disk refused. The log stays broken: after a failed fsync nobody knows what the disk holds.
        """
        self._refuse_broken()
        if self._synced:
            return
        try:
            sync_data(self._file)
        except OSError as error:
            self._broken = True
            raise self._fault(error) from None
        self._synced = True

    def reset(self) -> None:
        """Forget everything: the height is committed.

        The disk learns of it with the next `sync`. A power cut before that brings back the old height's log, whole,
        and its first entry says whose height it is.

        Raises:
            OwnFault: the disk refused.
        """
        self._refuse_broken()
        try:
            os.ftruncate(self._file, 0)
        except OSError as error:
            self._broken = True
            raise self._fault(error) from None
        self._sequence = 0
        self._end = 0
        self._synced = False

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._broken = True

    def _read(self) -> bytes:
        size = os.fstat(self._file).st_size
        if size > MAX_WAL_BYTES:
            raise WalError(f"{self._path} has {size} bytes, more than {MAX_WAL_BYTES}", hint="restore the data folder")
        chunks: list[bytes] = []
        while chunk := os.pread(self._file, 1 << 20, sum(map(len, chunks))):
            chunks.append(chunk)
        return b"".join(chunks)

    def _parse(self, data: bytes) -> tuple[tuple[bytes, ...], int]:
        """Entries, and where the good part ends."""
        entries: list[bytes] = []
        offset = 0
        search = offset
        while (frame := _frame_at(data, offset)) is not None:
            search = frame.end
            if frame.entry is None:
                break
            if frame.sequence != len(entries):
                raise self._damage(offset, offset)
            entries.append(frame.entry)
            offset = frame.end
        after = data.find(MARKER, search)
        while after >= 0:
            frame = _frame_at(data, after)
            if frame is not None and frame.entry is not None:
                raise self._damage(offset, after)
            after = data.find(MARKER, after + 1)
        return tuple(entries), offset

    def _damage(self, offset: int, good: int) -> WalError:
        return WalError(
            f"{self._path} is damaged at byte {offset}: a good entry stands at byte {good}",
            hint="restore the data folder; do not delete the log, it holds this validator's lock",
        )

    def _truncate(self, length: int) -> None:
        try:
            os.ftruncate(self._file, length)
            os.fsync(self._file)
        except OSError as error:
            self._broken = True
            raise self._fault(error) from None

    def _refuse_broken(self) -> None:
        if self._broken:
            raise OwnFault(f"{self._path} is closed or failed before", hint="restart the peer")

    def _fault(self, error: OSError) -> OwnFault:
        return OwnFault(f"cannot write {self._path}: {error.strerror}", hint="free some space, then restart the peer")


def _sync_folder(folder: Path) -> None:
    """So that a new log's name survives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class _Frame:
    sequence: int
    entry: bytes | None
    """None: cut short, or not what the CRC says."""
    end: int


def _frame(sequence: int, entry: bytes) -> bytes:
    head = HEAD.pack(MARKER, sequence, len(entry), zlib.crc32(entry), 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "big") + entry


def _frame_at(data: bytes, offset: int) -> _Frame | None:
    """The frame whose head stands at `offset`; None if no sound head does."""
    start = offset + HEAD.size
    if start > len(data):
        return None
    marker, sequence, length, entry_crc, head_crc = HEAD.unpack_from(data, offset)
    if marker != MARKER or head_crc != zlib.crc32(data[offset : start - 4]) or length > MAX_ENTRY_BYTES:
        return None
    entry = data[start : start + length]
    sound = len(entry) == length and zlib.crc32(entry) == entry_crc
    return _Frame(sequence, entry if sound else None, start + length)
