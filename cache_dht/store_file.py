"""The SQLite file of a store: opened as it is, or moved aside if it is damaged, never repaired in place."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from nsllm.cache_dht.errors import StoreError
from nsllm.clock import Clock
from nsllm.databases import Databases, connect

log = logging.getLogger(__name__)


def connect_store(
    path: Path | None, schema: str, table: str, clock: Clock, databases: Databases
) -> tuple[sqlite3.Connection, str | None]:
    """A connection to the store at `path` with its tables, and a notice if a damaged file was moved aside.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        return _connect(path, schema, table, databases), None
    except sqlite3.DatabaseError as error:
        if path is None or isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"cannot open {table} store {path}: {error}", hint="check space and modes") from None
        aside = path.with_name(f"{path.name}.damaged-{clock.now_ms()}")
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        notice = f"{table} store was damaged ({error}); moved to {aside.name}, records return from other holders"
        log.error("store_damaged path=%s aside=%s", path, aside)
        return _connect(path, schema, table, databases), notice


def _connect(path: Path | None, schema: str, table: str, databases: Databases) -> sqlite3.Connection:
    connection = connect(":memory:", autocommit=False) if path is None else databases.connect(path, autocommit=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        connection.executescript(schema)
        connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - our tables
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
