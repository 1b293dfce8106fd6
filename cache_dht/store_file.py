"""The SQLite file of a store: opened as it is, or moved aside if it is damaged, never repaired in place."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from nsllm.cache_dht.errors import StoreError
from nsllm.clock import Clock
from nsllm.databases import Databases, connect

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreFile:
    """What a store keeps in its file, and what an operator hears of it."""

    name: str
    """Such as `record`: of the "record store"."""
    table: str
    """Where it keeps them."""
    schema: str
    """Statements that make its tables, unless they are there."""
    comes_back: str
    """How what a damaged file held is had again, such as "records return from other holders"."""


def connect_store(
    path: Path | None, file: StoreFile, clock: Clock, databases: Databases
) -> tuple[sqlite3.Connection, str | None]:
    """A connection to the store at `path` (None: in memory), and a notice if a damaged file was moved aside.

    A damaged file is moved to `<name>.damaged-<ms>`.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        return _connect(path, file, databases), None
    except sqlite3.DatabaseError as error:
        if path is None or isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"cannot open {file.name} store {path}: {error}", hint="check space and modes") from None
        aside = path.with_name(f"{path.name}.damaged-{clock.now_ms()}")
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        notice = f"{file.name} store was damaged ({error}); moved to {aside.name}, {file.comes_back}"
        log.error("store_damaged path=%s aside=%s", path, aside)
        return _connect(path, file, databases), notice


def _connect(path: Path | None, file: StoreFile, databases: Databases) -> sqlite3.Connection:
    connection = connect(":memory:", autocommit=False) if path is None else databases.connect(path, autocommit=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        connection.executescript(file.schema)
        connection.execute(f"SELECT count(*) FROM {file.table}").fetchone()  # noqa: S608 - our tables
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
