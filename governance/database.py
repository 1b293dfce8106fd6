"""One SQLite file of this room: WAL mode, every commit synced, checked when opened, never repaired in place.

The connection belongs to one caller at a time (`Ledger` and `PeerLog` hold a lock around each offloaded call). What
goes wrong in SQLite comes out as `StorageError` that says what to do; the open transaction is rolled back first.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nsllm.databases import ON_DISK, Databases, connect
from nsllm.governance.errors import DamageError, StorageError
from nsllm.ids import TimeMs

log = logging.getLogger(__name__)

MIN_FREE_PAGES: Final = 256
"""A megabyte."""
MAX_JOURNAL_BYTES: Final = 16 * 1024 * 1024
"""A write-ahead file that grew beyond this in one large transaction is cut back after it."""
MAX_IN_ONE: Final = 512
"""Values that one statement asks for."""
RECOVERY_HINT: Final = "open with recovery: the file is moved aside and filled again from peers"


class Database:
    """A checked SQLite connection in autocommit mode: transactions are explicit."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None, what: str) -> None:
        """Use `open` instead."""
        self.connection = connection
        self.path = path
        self._what = what
        self.notice: str | None = None
        """What an operator should know about opening: a damaged file that was moved aside."""
        self.aside: Path | None = None
        """Where that file is now."""

    @classmethod
    def open(
        cls,
        path: Path | None,
        *,
        what: str,
        now_ms: TimeMs,
        recover: bool,
        hint: str,
        databases: Databases = ON_DISK,
    ) -> Database:
        """Open or create the file (None: in memory) and check every page of it.

        Args:
            path: the database file; its folder exists.
            what: name for messages, such as `ledger`.
            now_ms: names the file that a damaged one is moved to.
            recover: move a damaged file aside and begin a new one, with a notice; False refuses to open.
            hint: what to do about a damaged file.
            databases: where the file is.

        Raises:
            DamageError: damaged, and `recover` is False.
            StorageError: no space, or no permission.
        """
        try:
            return cls(_connect(path, databases), path, what)
        except sqlite3.DatabaseError as error:
            if path is None or not is_damage(error):
                raise StorageError(f"cannot open {what} {path}: {error}", hint="check space and permissions") from None
            if not recover:
                raise DamageError(f"{what} {path} is damaged: {error}", hint=hint) from None
            return cls.begin_anew(path, what=what, now_ms=now_ms, reason=str(error))

    @classmethod
    def begin_anew(cls, path: Path, *, what: str, now_ms: TimeMs, reason: str) -> Database:
        """Move a damaged (and closed) file aside and open a new one, with a notice."""
        aside = _move_aside(path, now_ms)
        log.error("database_damaged what=%s path=%s aside=%s", what, path, aside)
        database = cls(_connect(path, ON_DISK), path, what)
        database.aside = aside
        database.notice = f"{what} was damaged ({reason}); the file was moved to {aside.name} and a new one begun"
        return database

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All or nothing: see `atomic`."""
        with self.guarded(), atomic(self.connection):
            yield

    @contextmanager
    def guarded(self) -> Generator[None]:
        """SQLite's errors as `StorageError`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                hint = "restart the peer: the file is checked and, if need be, moved aside and filled again from peers"
                raise DamageError(f"{self._what} {self.path} is damaged: {error}", hint=hint) from None
            hint = "free some space; nothing of the last step was stored"
            raise StorageError(f"{self._what} {self.path}: {error}", hint=hint) from None

    def give_back(self) -> None:
        """Return space to the file system, where a quarter of the file is free: less is used again soon."""
        with self.guarded():
            free: int = self.connection.execute("PRAGMA freelist_count").fetchone()[0]
            pages: int = self.connection.execute("PRAGMA page_count").fetchone()[0]
            if free > max(MIN_FREE_PAGES, pages // 4):
                self.connection.execute(f"PRAGMA incremental_vacuum({free - pages // 8})").fetchall()

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self.connection.close()


@contextmanager
def atomic(connection: sqlite3.Connection) -> Generator[None]:
    """All or nothing: commits at the end, rolls back on any exception; no transaction is open before."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back on some errors, a full disk among them
            connection.execute("ROLLBACK")
        raise


def in_parts(values: Sequence[bytes]) -> Iterator[tuple[str, Sequence[bytes]]]:
    """(question marks, values) for `IN (…)`, some hundred at a time: a statement costs more than a value."""
    for start in range(0, len(values), MAX_IN_ONE):
        part = values[start : start + MAX_IN_ONE]
        yield ",".join("?" * len(part)), part


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Does `error` speak of a file that is no sound database (rather than of space, locks or permissions)?"""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    return primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
        primary is None and not isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError)
    )


def _connect(path: Path | None, databases: Databases) -> sqlite3.Connection:
    connection = connect(":memory:", autocommit=True) if path is None else databases.connect(path, autocommit=True)
    try:
        if connection.execute("PRAGMA page_count").fetchone()[0] == 0:  # of an old file it would write the header
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA journal_size_limit={MAX_JOURNAL_BYTES}")
        connection.execute("PRAGMA synchronous=FULL")
        verdict: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(verdict.split()))
    except BaseException:
        connection.close()
        raise
    return connection


def _move_aside(path: Path, now_ms: TimeMs) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{now_ms}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.rename(aside.with_name(aside.name + suffix))
    return aside
