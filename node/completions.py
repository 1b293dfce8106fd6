"""Completions that this peer gave out, and the records behind them: what `/v1/receipts/{id}` and the publisher read.

A record is on disk before it is submitted, so a peer that was killed goes on publishing after its restart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from nsllm import canonical
from nsllm.errors import OwnFault
from nsllm.ids import Digest, TimeMs
from nsllm.offload import Offload
from nsllm.record import MAX_RECORD_BYTES, SignedRecord

R = TypeVar("R")
State = Literal["pending", "certified", "none"]

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS completion (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    record BLOB,
    created_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS record (digest BLOB PRIMARY KEY, body BLOB NOT NULL, own INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS completion_by_state ON completion (state, created_ms);
CREATE INDEX IF NOT EXISTS completion_by_record ON completion (record);
"""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer that was given out."""

    completion_id: str
    state: State
    """`pending`: its record waits for a certificate; `none`: there will be no receipt, `detail` says why."""
    detail: str
    signed: SignedRecord | None
    created_ms: TimeMs


class Completions:
    """SQLite table of completions; synced before a call returns."""

    def __init__(self, connection: sqlite3.Connection, offload: Offload) -> None:
        """Use `open` instead."""
        self._connection = connection
        self._offload = offload

    @classmethod
    def open(cls, path: Path | None, offload: Offload) -> Completions:
        """Open or create the table at `path` (None: in memory).

        Raises:
            OwnFault: damaged or unwritable file; says what to do.
        """
        try:
            connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise OwnFault(
                f"cannot open {path}: {error}",
                hint="move the file aside and start again; receipts of answers in it can still be had from the holders",
            ) from None
        return cls(connection, offload)

    async def add(
        self, completion_id: str, state: State, detail: str, signed: SignedRecord | None, now_ms: TimeMs, *, own: bool
    ) -> None:
        """Write a completion, with the record that it stands on.

        Args:
            completion_id: `chatcmpl-…`.
            state: `pending` only with a record.
            detail: reason, for state `none`.
            signed: the record; None for private and withheld answers.
            now_ms: wall time.
            own: True if this peer generated the record and therefore publishes it.
        """

        def work() -> None:
            digest = None
            if signed is not None:
                digest = signed.record.digest()
                body = canonical.encode(signed)
                self._connection.execute("INSERT OR IGNORE INTO record VALUES (?,?,?)", (digest, body, own))
            self._connection.execute(
                "INSERT INTO completion VALUES (?,?,?,?,?)", (completion_id, state, detail, digest, now_ms)
            )

        await self._transaction(work)

    async def settle(self, record: Digest, state: State, detail: str) -> None:
        """Every pending completion that stands on `record` has reached its end."""

        def work() -> None:
            self._connection.execute(
                "UPDATE completion SET state=?, detail=? WHERE record=? AND state='pending'", (state, detail, record)
            )

        await self._transaction(work)

    async def get(self, completion_id: str) -> Completion | None:
        """One completion."""

        def work() -> Completion | None:
            row = self._connection.execute(
                "SELECT id, state, detail, body, created_ms FROM completion LEFT JOIN record ON record=digest"
                " WHERE id=?",
                (completion_id,),
            ).fetchone()
            return _completion(row) if row else None

        return await self._transaction(work)

    async def unpublished(self, limit: int) -> tuple[Completion, ...]:
        """Own completions whose record waits for a certificate, oldest first."""

        def work() -> tuple[Completion, ...]:
            rows = self._connection.execute(
                "SELECT id, state, detail, body, created_ms FROM completion JOIN record ON record=digest"
                " WHERE state='pending' AND own=1 ORDER BY created_ms, id LIMIT ?",
                (limit,),
            ).fetchall()
            return tuple(_completion(row) for row in rows)

        return await self._transaction(work)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    async def _transaction(self, work: Callable[[], R]) -> R:
        def guarded() -> R:
            with self._guard(), self._connection:
                return work()

        return await self._offload.run(guarded)

    @contextmanager
    def _guard(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise OwnFault(f"completions table: {error}", hint="free some space, then ask again") from None


def _completion(row: tuple[str, State, str, bytes | None, int]) -> Completion:
    signed = canonical.decode(row[3], SignedRecord, limit_bytes=MAX_RECORD_BYTES) if row[3] is not None else None
    return Completion(row[0], row[1], row[2], signed, TimeMs(row[4]))
