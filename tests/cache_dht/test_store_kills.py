"""Killed at every boundary and at any instant (kill -9), a store loses no record that it acknowledged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from nsllm import canonical
from nsllm.cache_dht.eviction import ROW_BYTES

SCRIPT = Path(__file__).with_name("dying_store.py")
RECORDS = 24
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def deaths(certify, tmp_path: Path):
    """Plays lives of a store with room for so many records (0: for all); how many were killed."""
    records = [canonical.encode(certify(f"question {number:02}")) for number in range(RECORDS)]
    (tmp_path / "records").write_bytes(msgpack.packb(records))

    def play(room: int, *arguments: str) -> int:
        limit = room * (max(map(len, records)) + ROW_BYTES)
        command = [sys.executable, str(SCRIPT), str(tmp_path), str(limit), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return int(done.stdout)

    return play


@pytest.mark.parametrize("statement", ["BEGIN", "SELECT 1", "INSERT INTO record", "UPDATE record", "COMMIT"])
def test_killed_at_a_boundary(statement: str, deaths) -> None:
    assert deaths(0, statement) >= 5


@pytest.mark.parametrize("statement", ["DELETE FROM record", "INSERT INTO record", "COMMIT"])
def test_killed_at_a_boundary_of_an_eviction(statement: str, deaths) -> None:
    assert deaths(8, statement) >= 5


def test_killed_at_any_instant(deaths) -> None:
    """The kill comes while the next record is being written, wherever that has got to."""
    assert deaths(0, "", "1", "2", "3", "1", "4", "2") == 6
