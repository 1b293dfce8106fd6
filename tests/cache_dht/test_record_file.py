"""A file of records: what is written is read again, and damage costs the lines that it hits and is named."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.cache_dht import record_file
from nsllm.cache_dht.errors import RecordFileError
from nsllm.cache_dht.record_file import Damaged, Line, first_line, last_line, read_records, record_line
from nsllm.ids import Digest, NetworkId

NETWORK = NetworkId(b"\x07" * 32)
RECORDS = [(Digest(bytes([n]) * 32), bytes([n]) * (50 + n)) for n in range(5)]


def written(records=RECORDS, network=NETWORK) -> bytes:
    return first_line(network) + b"".join(record_line(*row) for row in records) + last_line(len(records))


def read(data: bytes, network=NETWORK) -> list[Line | Damaged]:
    return list(read_records(io.BytesIO(data), network))


def test_what_is_written_is_read_again() -> None:
    assert read(written()) == [Line(n + 2, digest, body) for n, (digest, body) in enumerate(RECORDS)]
    assert read(written([])) == []


@given(st.integers(0, len(written()) - 1), st.integers(1, 255))
def test_a_byte_that_changed_costs_at_most_two_records(at: int, by: int) -> None:
    data = bytearray(written())
    data[at] ^= by
    try:
        found = read(bytes(data))
    except RecordFileError:
        assert at < len(first_line(NETWORK))  # it is a file of another network, or none
        return
    good = {(line.record, line.body) for line in found if isinstance(line, Line)}
    assert len(good & set(RECORDS)) >= len(RECORDS) - 2
    if len(good & set(RECORDS)) < len(RECORDS):
        assert len(found) > len(good & set(RECORDS))  # something is said of it


def test_a_damaged_record_is_named_by_its_digest() -> None:
    lines = written().split(b"\n")
    lines[3] = lines[3][:-20] + b"\xff" + lines[3][-19:]
    (damaged,) = [line for line in read(b"\n".join(lines)) if isinstance(line, Damaged)]
    assert (damaged.number, damaged.record) == (4, RECORDS[2][0])


def test_a_file_that_was_cut_off_says_so() -> None:
    data = written()
    whole = data[: data.rindex(b'{"records"')]
    *lines, last = read(whole)
    assert len(lines) == 5
    assert isinstance(last, Damaged)
    assert "does not end" in last.reason
    *lines, half, last = read(whole[:-30])
    assert len(lines) == 4
    assert isinstance(half, Damaged)
    assert half.record == RECORDS[4][0]


def test_a_line_beyond_what_a_record_can_be_is_passed_over(monkeypatch) -> None:
    monkeypatch.setattr(record_file, "MAX_LINE_BYTES", 300)
    long = record_line(Digest(bytes([9]) * 32), bytes(2000))
    data = first_line(NETWORK) + long + b"".join(record_line(*row) for row in RECORDS) + last_line(6)
    first, *others = read(data)
    assert isinstance(first, Damaged)
    assert first.record == bytes([9]) * 32
    assert [line.record for line in others] == [digest for digest, _ in RECORDS]


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0", b'{"format":"other/1"}\n', b"[1]\n"])
def test_another_kind_of_file_is_refused(data: bytes) -> None:
    with pytest.raises(RecordFileError, match="no file of records"):
        read(data)


def test_another_networks_records_are_refused() -> None:
    with pytest.raises(RecordFileError, match="of network 0x0101"):
        read(written(network=NetworkId(b"\x01" * 32)))
