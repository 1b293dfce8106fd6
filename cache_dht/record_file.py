"""The file in which certified records travel: JSON lines, so that damage costs the lines that it hits alone. Pure.

The first line names format and network, each further one holds one record under its digest, the last one says how many
there are. Nothing in it is trusted: a reader takes each record to a peer that verifies it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, cast

from nsllm.cache_dht.errors import RecordFileError
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES
from nsllm.ids import Digest, NetworkId, hex0x

FORMAT: Final = "nsllm-records/1"
MAX_LINE_BYTES: Final = MAX_CERTIFIED_BYTES * 4 // 3 + 1024
_NAMED: Final = re.compile(rb'"record":"0x([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True)
class Line:
    """A record as the file has it."""

    number: int
    """Of the line, from 1."""
    record: Digest
    """What the file calls it."""
    body: bytes
    """The certified record, canonical if it is sound."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that cannot be read."""

    number: int
    record: Digest | None
    """Which record it was, if that much can be read."""
    reason: str


def first_line(network: NetworkId) -> bytes:
    """How a file begins."""
    return _line({"format": FORMAT, "network": hex0x(network)})


def record_line(record: Digest, body: bytes) -> bytes:
    """A record."""
    return _line({"record": hex0x(record), "certified": base64.b64encode(body).decode()})


def last_line(records: int) -> bytes:
    """How a file ends."""
    return _line({"records": records})


def read_records(file: IO[bytes], network: NetworkId) -> Iterator[Line | Damaged]:
    """What a file holds, line by line; damage is told and passed over.

    Args:
        file: at its beginning.
        network: the one that its records must belong to.

    Raises:
        RecordFileError: another kind of file, or another network's.
    """
    number = found = 0
    ended = False
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        whole = line.endswith(b"\n")
        while not whole and len(line) == MAX_LINE_BYTES:  # beyond what a record can be: read away, not kept
            more = file.readline(MAX_LINE_BYTES)
            whole = not more or more.endswith(b"\n") or len(more) < MAX_LINE_BYTES
        row = _read(line)
        if number == 1 and row is not None:
            _check_first(row, network)
            continue
        if row is not None and set(row) == {"records"}:
            ended = row["records"] == found
            continue
        found += 1
        yield _record(number, line, row)
    if number == 0 or (number == 1 and not ended and found == 1):
        raise RecordFileError("this is no file of records", hint="`nsllm cache export FILE` writes one")
    if not ended:
        yield Damaged(number, None, f"the file does not end as it should: {found} lines of records were found")


def _record(number: int, line: bytes, row: dict[str, Any] | None) -> Line | Damaged:
    try:
        if row is not None:
            record = bytes.fromhex(row["record"].removeprefix("0x"))
            body = base64.b64decode(row["certified"], validate=True)
            if len(record) == 32 and set(row) == {"record", "certified"}:
                return Line(number, Digest(record), body)
    except (KeyError, AttributeError, TypeError, ValueError, binascii.Error):
        pass
    named = _NAMED.search(line)
    digest = Digest(bytes.fromhex(named[1].decode())) if named else None
    return Damaged(number, digest, f"line {number} of {len(line)} bytes is damaged")


def _read(line: bytes) -> dict[str, Any] | None:
    """The object that a line is; None if it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _check_first(row: dict[str, Any], network: NetworkId) -> None:
    if row.get("format") != FORMAT:
        raise RecordFileError("this is no file of records", hint="`nsllm cache export FILE` writes one")
    if row.get("network") != hex0x(network):
        raise RecordFileError(
            f"these are records of network {str(row.get('network'))[:18]}…, the peer's is {hex0x(network)[:18]}…",
            hint="records are certified by the validators of one network, and are worth nothing in another",
        )


def _line(row: dict[str, object]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"
