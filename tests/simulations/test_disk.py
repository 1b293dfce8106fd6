"""Databases in memory keep what was committed when their connections end, and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from nsllm.simulations.disk import MemoryDatabases

WHERE = Path("a.sqlite")


def rows(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]


def test_what_was_committed_is_there_again() -> None:
    disk = MemoryDatabases()
    first = disk.connect(WHERE, autocommit=True)
    first.execute("CREATE TABLE t (x INTEGER)")
    first.execute("INSERT INTO t VALUES (1)")
    first.execute("BEGIN")
    first.execute("INSERT INTO t VALUES (2)")
    first.close()
    assert rows(disk.connect(WHERE, autocommit=False)) == [1]
    assert disk.connect(Path("b.sqlite"), autocommit=True).execute("SELECT * FROM sqlite_master").fetchall() == []


def test_a_kill_goes_back_to_what_stood_there() -> None:
    disk = MemoryDatabases()
    running = disk.connect(WHERE, autocommit=True)
    running.execute("CREATE TABLE t (x INTEGER)")
    left = disk.left()
    running.execute("INSERT INTO t VALUES (1)")
    running.close()
    disk.restore(left)
    assert rows(disk.connect(WHERE, autocommit=True)) == []
