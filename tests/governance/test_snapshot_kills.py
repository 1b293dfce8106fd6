"""Killed at every boundary of taking, pruning and installing (kill -9), a ledger opens as it was, and goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIVES_OF = Path(__file__).parents[1] / "lives.py"
SCRIPT = Path(__file__).with_name("dying_ledger.py")
LIVES = 3


def lives(folder: Path, mode: str, statement: str) -> tuple[int, int, int, str]:
    (folder / mode).mkdir()
    done = subprocess.run(
        [sys.executable, LIVES_OF, SCRIPT, folder / mode, statement, str(LIVES)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    height, kept_from, root = (folder / mode / "found").read_text().split()
    return int(done.stdout), int(height), int(kept_from), root


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory) -> dict[str, tuple[int, int, int, str]]:
    """What comes of lives that nothing ends."""
    return {mode: lives(tmp_path_factory.mktemp(mode), mode, "never") for mode in ("commit", "install")}


@pytest.mark.parametrize(
    "statement",
    [
        "BEGIN",
        "INSERT INTO block",
        "INSERT INTO snapshot_chunk",
        "INSERT INTO snapshot VALUES",
        "DELETE FROM evm",
        "INSERT OR REPLACE INTO kept_proof",
        "DELETE FROM block",
        "DELETE FROM network_log_node",
        "COMMIT",
        "PRAGMA freelist_count",
    ],
)
def test_killed_while_a_block_is_committed(tmp_path, unharmed, statement) -> None:
    deaths, *found = lives(tmp_path, "commit", statement)
    assert deaths == LIVES - 1
    assert found == [13, 8, found[2]]
    assert tuple(found) == unharmed["commit"][1:]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM incoming_chunk",
        "INSERT OR REPLACE INTO incoming_chunk",
        "INSERT OR REPLACE INTO kept_proof",
        "DELETE FROM block",
        "DELETE FROM evm",
        "INSERT INTO evm",
        "INSERT INTO snapshot VALUES",
        "COMMIT",
        "PRAGMA freelist_count",
    ],
)
def test_killed_while_a_snapshot_is_taken_in(tmp_path, unharmed, statement) -> None:
    deaths, *found = lives(tmp_path, "install", statement)
    assert deaths >= 1
    assert tuple(found) == unharmed["install"][1:]
    assert found[:2] == [12, 12]
