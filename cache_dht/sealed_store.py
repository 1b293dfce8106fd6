"""Envelopes that a holder keeps for groups that it need not know: SQLite (WAL mode), bounded, the oldest leave first.

What `put` acknowledges survives `kill -9`. Rows say nothing of meaning: there is no index by it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.sealed import MAX_CERTIFIED_SEALED_BYTES, CertifiedSealed
from nsllm.cache_dht.store_file import StoreFile, connect_store
from nsllm.clock import Clock
from nsllm.databases import ON_DISK, Databases
from nsllm.errors import EncodingError
from nsllm.ids import Digest
from nsllm.offload import InTurn, Offload

log = logging.getLogger(__name__)
R = TypeVar("R")

FILE: Final = StoreFile(
    name="sealed",
    table="sealed",
    schema="""
CREATE TABLE IF NOT EXISTS sealed (
    row INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    request_key BLOB NOT NULL,
    own INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS sealed_by_key ON sealed (request_key, row);
""",
    comes_back="envelopes return from other holders",
)
ROW_BYTES: Final = 256
"""What a row takes beside its body, about."""


class SealedStore:
    """Certified envelopes by salted request key and by record. Blocking work goes through `Offload`."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None, clock: Clock, offload: Offload, max_bytes: int | None
    ) -> None:
        """Use `open` instead."""
        self._connection = connection
        self._path = path
        self._clock = clock
        self._offload = InTurn(offload)
        self._max_bytes = max_bytes
        self.version = 0
        """Grows whenever envelopes come or go."""
        self.notice: str | None = None
        """What an operator should know about opening: a damaged file that was moved aside."""

    @classmethod
    def open(
        cls,
        path: Path | None,
        clock: Clock,
        offload: Offload,
        *,
        max_bytes: int | None = None,
        databases: Databases = ON_DISK,
    ) -> SealedStore:
        """Open or create the store at `path` (None: in memory); a damaged file is moved aside with a notice.

        Raises:
            StoreError: the folder cannot be written.
        """
        connection, notice = connect_store(path, FILE, clock, databases)
        store = cls(connection, path, clock, offload, max_bytes)
        store.notice = notice
        return store

    async def put(self, certified: CertifiedSealed) -> bool:
        """Store an envelope that the caller has checked; True if it is new, on disk before this returns.

        Its generator's own takes the place of a validator's.

        Raises:
            StoreError: full disk or damaged page; nothing was stored.
        """

        def work() -> bool:
            sealed, body = certified.envelope.sealed, canonical.encode(certified)
            own = sealed.sealer == certified.leaf.generator
            with self._connection:
                held = self._connection.execute("SELECT own FROM sealed WHERE digest=?", (sealed.record,)).fetchone()
                if held is not None and (held[0] or not own):
                    return False
                self._make_room(len(body) + ROW_BYTES)
                self._connection.execute(
                    "INSERT OR REPLACE INTO sealed (digest, request_key, own, stored_ms, body) VALUES (?,?,?,?,?)",
                    (sealed.record, sealed.request_key, own, self._clock.now_ms(), body),
                )
            self.version += 1
            return held is None

        return await self._run(work)

    async def get(self, request_key: Digest) -> CertifiedSealed | None:
        """The newest envelope for a salted request key."""
        sql = "SELECT row, body FROM sealed WHERE request_key=? ORDER BY row DESC LIMIT 1"
        return await self._run(lambda: self._one(sql, request_key))

    async def by_digest(self, record: Digest) -> CertifiedSealed | None:
        """The envelope of this record."""
        return await self._run(lambda: self._one("SELECT row, body FROM sealed WHERE digest=?", record))

    async def catalogue(self) -> tuple[tuple[Digest, Digest], ...]:
        """(digest of the record, salted request key) of all envelopes."""
        sql = "SELECT digest, request_key FROM sealed"
        rows = await self._run(lambda: self._connection.execute(sql).fetchall())
        return tuple((Digest(digest), Digest(key)) for digest, key in rows)

    async def erase(self, records: Sequence[Digest]) -> tuple[Digest, ...]:
        """Delete envelopes so that their bytes are overwritten; which of them were there. Raises `StoreError`."""

        def work() -> tuple[Digest, ...]:
            self._connection.execute("PRAGMA secure_delete=ON")
            sql = "DELETE FROM sealed WHERE digest=?"
            with self._connection:
                found = [each for each in records if self._connection.execute(sql, (each,)).rowcount]
            self.version += 1
            if found:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return tuple(found)

        return await self._run(work)

    async def holds(self, record: Digest) -> bool:
        """Whether an envelope of this record is here."""
        sql = "SELECT 1 FROM sealed WHERE digest=?"
        return await self._run(lambda: self._connection.execute(sql, (record,)).fetchone() is not None)

    async def count(self) -> int:
        """Envelopes that are held."""
        return await self._run(lambda: int(self._connection.execute("SELECT count(*) FROM sealed").fetchone()[0]))

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        self._connection.close()

    def _one(self, sql: str, argument: Digest) -> CertifiedSealed | None:
        row = self._connection.execute(sql, (argument,)).fetchone()
        if row is None:
            return None
        try:
            return canonical.decode(row[1], CertifiedSealed, limit_bytes=MAX_CERTIFIED_SEALED_BYTES)
        except EncodingError as error:  # bytes that changed inside a sound page: other holders have it
            log.error("envelope_damaged row=%d error=%s", row[0], error)
            with self._connection:
                self._connection.execute("DELETE FROM sealed WHERE row=?", (row[0],))
            self.version += 1
            return None

    def _make_room(self, size_bytes: int) -> None:
        if self._max_bytes is None:
            return
        sql = "SELECT coalesce(sum(length(body) + ?), 0) FROM sealed"
        over = self._connection.execute(sql, (ROW_BYTES,)).fetchone()[0] + size_bytes - self._max_bytes
        if over <= 0:
            return
        gone: list[tuple[int]] = []
        for row, size in self._connection.execute("SELECT row, length(body) FROM sealed ORDER BY row"):
            if over <= 0:
                break
            gone.append((row,))
            over -= size + ROW_BYTES
        self._connection.executemany("DELETE FROM sealed WHERE row=?", gone)
        log.info("envelopes_evicted count=%d", len(gone))

    async def _run(self, work: Callable[[], R]) -> R:
        def guarded() -> R:
            try:
                return work()
            except sqlite3.DatabaseError as error:
                raise StoreError(
                    f"store of envelopes {self._path or 'in memory'}: {error}",
                    hint="free some space; if the file is damaged, restart: it is moved aside and refilled",
                ) from None

        return await self._offload.run(guarded)
