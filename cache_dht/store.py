"""The record store: certified records in SQLite (WAL mode), with the FAISS index kept in step.

What `put` acknowledges survives `kill -9`: the transaction is synced before it returns. The index lives in memory and
is rebuilt from the table when the store opens. A damaged database is moved aside, never repaired in place: the records
come back from the other holders. A store that is full evicts (`nsllm.cache_dht.eviction`). How much a record is asked
for is written with the next record, or at the end: what a kill loses of that costs an order, no record.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.eviction import (
    CANDIDATES,
    ROW_BYTES,
    SETTLE_MS,
    SLACK,
    Shelved,
    fresh,
    served,
    victims,
    worth,
)
from nsllm.cache_dht.guards import changes
from nsllm.cache_dht.index import SemanticIndex
from nsllm.cache_dht.store_file import StoreFile, connect_store
from nsllm.clock import Clock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.databases import ON_DISK, Databases
from nsllm.errors import EncodingError
from nsllm.ids import Digest
from nsllm.offload import InTurn, Offload

log = logging.getLogger(__name__)

FILE: Final = StoreFile(
    name="record",
    table="record",
    schema="""
CREATE TABLE IF NOT EXISTS record (
    row INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    request_key BLOB NOT NULL,
    height INTEGER NOT NULL,
    hybrid_ppm INTEGER NOT NULL,
    embedding BLOB NOT NULL,
    public INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    worth REAL NOT NULL,
    value REAL NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS record_by_key ON record (request_key, hybrid_ppm DESC, height, digest);
CREATE INDEX IF NOT EXISTS record_by_value ON record (value);
""",
    comes_back="records return from other holders",
)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Size of the store."""

    records: int
    size_bytes: int
    indexed: int


class RecordStore:
    """Certified records by request key and by digest. Blocking work goes through `Offload`; one call at a time."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None, clock: Clock, offload: Offload, max_bytes: int | None
    ) -> None:
        """Use `open` instead."""
        self._connection = connection
        self._path = path
        self._clock = clock
        self._offload = InTurn(offload)
        self._max_bytes = max_bytes
        self._bytes = 0
        """Of all records, `ROW_BYTES` included."""
        self._asked: dict[int, float] = {}
        """New values of rows that were served since the last record was written."""
        self._index = SemanticIndex()
        self.ours: Callable[[Digest, bytes], bool] = lambda _request_key, _embedding: True
        """Whether placement gives a record to this peer; whoever knows the placement sets it."""
        self.version = 0
        """Grows whenever records come or go."""
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
    ) -> RecordStore:
        """Open or create the store at `path` (None: in memory, for simulations).

        Beyond `max_bytes` records are evicted; None: never.

        A file that is not a sound database is moved to `<name>.damaged-<ms>` with a notice, and a new one is begun.

        Raises:
            StoreError: the folder cannot be written.
        """
        connection, notice = connect_store(path, FILE, clock, databases)
        store = cls(connection, path, clock, offload, max_bytes)
        store.notice = notice
        with store._guarded():
            sql = "SELECT coalesce(sum(length(body) + ?), 0) FROM record"
            store._bytes = connection.execute(sql, (ROW_BYTES,)).fetchone()[0]
            store._index.add(connection.execute("SELECT row, embedding FROM record ORDER BY row"))
        return store

    async def put(self, certified: CertifiedRecord, request_key: Digest, hybrid_ppm: int) -> bool:
        """Store a record that the caller has verified; True if it is new, on disk before this returns.

        Raises:
            StoreError: full disk or damaged page, or the store is full of records that came a moment ago; nothing was
                stored.
        """
        return await self._offload.run(lambda: self._put(certified, request_key, hybrid_ppm))

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self._index)

    @property
    def crowded(self) -> bool:
        """Less than an eighth of the limit is left."""
        return self._max_bytes is not None and self._bytes > self._max_bytes * 7 // 8

    def _put(self, certified: CertifiedRecord, request_key: Digest, hybrid_ppm: int) -> bool:
        record, body = certified.signed.record, canonical.encode(certified)
        now_ms, gain = self._clock.now_ms(), worth(record, len(body) + ROW_BYTES)
        height = certified.certificate.header.height
        if changes(record.request):  # the newest answer comes first
            hybrid_ppm = height
        with self._guarded(), self._connection:
            if self._connection.execute("SELECT 1 FROM record WHERE digest=?", (record.digest(),)).fetchone():
                return False
            self._note_asked()
            evicted = self._make_room(len(body) + ROW_BYTES)
            cursor = self._connection.execute(
                "INSERT INTO record (digest, request_key, height, hybrid_ppm, embedding, public, stored_ms, worth,"
                " value, body) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    record.digest(),
                    request_key,
                    height,
                    hybrid_ppm,
                    record.embedding,
                    record.visibility == "public",
                    now_ms,
                    gain,
                    fresh(gain, now_ms),
                    body,
                ),
            )
        self._asked.clear()
        if evicted:
            log.info("records_evicted count=%d bytes=%d", len(evicted), sum(evicted.values()))
        self._gone(evicted)
        assert cursor.lastrowid is not None
        self._bytes += len(body) + ROW_BYTES
        self.version += 1
        self._index.add([(cursor.lastrowid, record.embedding)])
        return True

    def _make_room(self, size_bytes: int) -> dict[int, int]:
        """Delete what must go for a record of this size, within the caller's transaction: rows and their sizes."""
        if self._max_bytes is None or (over := self._bytes + size_bytes - self._max_bytes) <= 0:
            return {}
        shelved = self._least_valuable()
        sizes = {one.row: one.size_bytes for one in shelved}
        chosen = victims(shelved, over + self._max_bytes // SLACK)
        if sum(sizes[row] for row in chosen) < over:
            raise StoreError(
                f"record store {self._path or 'in memory'} is full: {self._bytes} bytes of {self._max_bytes}, and what"
                f" came within {SETTLE_MS // 60_000} minutes stays",
                hint="raise cache.max_mb",
            )
        self._connection.executemany("DELETE FROM record WHERE row=?", [(row,) for row in chosen])
        return {row: sizes[row] for row in chosen}

    def _least_valuable(self) -> list[Shelved]:
        """What may be evicted, the least valuable first."""
        sql = (
            "SELECT row, request_key, embedding, length(body) FROM record WHERE stored_ms<=?"
            " ORDER BY value, row LIMIT ?"
        )
        rows = self._connection.execute(sql, (self._clock.now_ms() - SETTLE_MS, CANDIDATES)).fetchall()
        return [Shelved(row, size + ROW_BYTES, self.ours(key, embedding)) for row, key, embedding, size in rows]

    def _note_asked(self) -> None:
        """Write down how much was asked for what, within the caller's transaction."""
        rows = [(value, row) for row, value in self._asked.items()]
        self._connection.executemany("UPDATE record SET value=? WHERE row=?", rows)

    def _gone(self, sizes: dict[int, int]) -> None:
        """Rows of these sizes are deleted."""
        if not sizes:
            return
        self.version += 1
        self._index.remove(sizes)
        self._bytes -= sum(sizes.values())
        for row in sizes:
            self._asked.pop(row, None)

    async def get(self, request_key: Digest, *, public_only: bool = False) -> CertifiedRecord | None:
        """Best record for an exact key: highest hybrid score when stored, then lowest height.

        Where answers change with time, the newest.

        Args:
            request_key: digest of the canonical request.
            public_only: leave out records with visibility `group` (for strangers, whose asking is no demand either:
                it costs them nothing).
        """
        sql = (
            "SELECT row, body FROM record WHERE request_key=? AND public>=?"
            " ORDER BY hybrid_ppm DESC, height, digest LIMIT 1"
        )
        return await self._offload.run(lambda: self._one(sql, (request_key, int(public_only)), demand=not public_only))

    async def served(self, digest: Digest) -> None:
        """A record that `near` gave was served: there is demand for it."""

        def work() -> None:
            with self._guarded():
                row = self._connection.execute("SELECT row FROM record WHERE digest=?", (digest,)).fetchone()
            if row is not None:
                self._demand(row[0])

        await self._offload.run(work)

    def _demand(self, row: int) -> None:
        with self._guarded():
            sql = "SELECT worth, value FROM record WHERE row=?"
            gain, value = self._connection.execute(sql, (row,)).fetchone()
        known = self._asked.get(row)
        self._asked[row] = served(float(value) if known is None else known, gain, self._clock.now_ms())

    async def by_digest(self, digest: Digest) -> CertifiedRecord | None:
        """The record with this digest."""
        return await self._offload.run(lambda: self._one("SELECT row, body FROM record WHERE digest=?", (digest,)))

    async def near(
        self, embedding: bytes, count: int, *, least: float = -1.0, public_only: bool = False
    ) -> tuple[tuple[CertifiedRecord, float], ...]:
        """At most `count` records whose question is nearest, with their cosines, nearest first.

        Args:
            embedding: 384 signed bytes.
            count: how many.
            least: cosine below which none is given.
            public_only: leave out records with visibility `group` (for strangers).
        """

        def work() -> tuple[tuple[CertifiedRecord, float], ...]:
            found = [n for n in self._index.search(embedding, count) if n.cosine >= least]
            sql = "SELECT row, body FROM record WHERE row=? AND public>=?"
            rows = [(self._one(sql, (n.row, int(public_only))), n.cosine) for n in found]
            return tuple((record, cosine) for record, cosine in rows if record is not None)

        return await self._offload.run(work)

    async def erase(self, records: Sequence[Digest]) -> tuple[Digest, ...]:
        """Delete records so that their bytes are overwritten, in the file and in its log; which of them were there.

        Raises:
            StoreError: disk trouble; some of them may be there still.
        """

        def work() -> tuple[Digest, ...]:
            found: dict[int, tuple[Digest, int]] = {}
            with self._guarded():
                self._connection.execute("PRAGMA secure_delete=ON")
                with self._connection:
                    sql = "DELETE FROM record WHERE digest=? RETURNING row, length(body)"
                    for digest in records:
                        for row, size in self._connection.execute(sql, (digest,)).fetchall():
                            found[row] = (digest, size)
                self._gone({row: size + ROW_BYTES for row, (_, size) in found.items()})
                self._connection.execute("PRAGMA secure_delete=OFF")
                if found:
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return tuple(digest for digest, _ in found.values())

        return await self._offload.run(work)

    async def holds(self, record: Digest) -> bool:
        """Whether a record is here."""

        def work() -> bool:
            with self._guarded():
                sql = "SELECT 1 FROM record WHERE digest=?"
                return self._connection.execute(sql, (record,)).fetchone() is not None

        return await self._offload.run(work)

    async def digests(self) -> tuple[Digest, ...]:
        """Digests of all records, ascending."""

        def work() -> tuple[Digest, ...]:
            with self._guarded():
                rows = self._connection.execute("SELECT digest FROM record ORDER BY digest").fetchall()
            return tuple(Digest(row[0]) for row in rows)

        return await self._offload.run(work)

    async def page(self, after: Digest | None, count: int) -> tuple[tuple[Digest, bytes], ...]:
        """At most `count` public records in their canonical form, by ascending digest, above `after`."""

        def work() -> tuple[tuple[Digest, bytes], ...]:
            sql = "SELECT digest, body FROM record WHERE digest>? AND public=1 ORDER BY digest LIMIT ?"
            with self._guarded():
                rows = self._connection.execute(sql, (after or b"", count)).fetchall()
            return tuple((Digest(digest), body) for digest, body in rows)

        return await self._offload.run(work)

    async def catalogue(self) -> tuple[tuple[Digest, Digest, bytes], ...]:
        """(digest, request key, embedding) of all records."""

        def work() -> tuple[tuple[Digest, Digest, bytes], ...]:
            with self._guarded():
                rows = self._connection.execute("SELECT digest, request_key, embedding FROM record").fetchall()
            return tuple((Digest(digest), Digest(key), embedding) for digest, key, embedding in rows)

        return await self._offload.run(work)

    async def stats(self) -> StoreStats:
        """Counts for the status page."""

        def work() -> StoreStats:
            with self._guarded():
                sql = "SELECT count(*), coalesce(sum(length(body)), 0) FROM record"
                count, size = self._connection.execute(sql).fetchone()
            return StoreStats(count, size, len(self._index))

        return await self._offload.run(work)

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        with suppress(sqlite3.DatabaseError), self._connection:  # a full disk: only what was asked for is lost
            self._note_asked()
        self._connection.close()

    def _one(self, sql: str, arguments: tuple[object, ...], *, demand: bool = False) -> CertifiedRecord | None:
        with self._guarded():
            row = self._connection.execute(sql, arguments).fetchone()
        if row is None:
            return None
        try:
            found = canonical.recall(row[1], CertifiedRecord)
        except EncodingError as error:
            # Bytes that changed inside a sound page: other holders have the record.
            log.error("record_damaged row=%d error=%s", row[0], error)
            with self._guarded(), self._connection:
                self._connection.execute("DELETE FROM record WHERE row=?", (row[0],))
            self._gone({row[0]: len(row[1]) + ROW_BYTES})
            return None
        if demand:
            self._demand(row[0])
        return found

    @contextmanager
    def _guarded(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"record store {self._path or 'in memory'}: {error}",
                hint="free some space; if the file is damaged, restart: it is moved aside and refilled",
            ) from None
