"""The record store: certified records in SQLite (WAL mode), with the FAISS index kept in step.

What `put` acknowledges survives `kill -9`: the transaction is synced before it returns. The index lives in memory and
is rebuilt from the table when the store opens. A damaged database is moved aside, never repaired in place: the records
come back from the other holders. A store that is full evicts (`nsllm.cache_dht.eviction`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.eviction import CANDIDATES, ROW_BYTES, SETTLE_MS, SLACK, Shelved, victims
from nsllm.cache_dht.index import SemanticIndex
from nsllm.clock import Clock
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
from nsllm.databases import ON_DISK, Databases, connect
from nsllm.errors import EncodingError
from nsllm.ids import Digest
from nsllm.offload import Offload

log = logging.getLogger(__name__)

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS record (
    row INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    request_key BLOB NOT NULL,
    height INTEGER NOT NULL,
    hybrid_ppm INTEGER NOT NULL,
    embedding BLOB NOT NULL,
    public INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS record_by_key ON record (request_key, hybrid_ppm DESC, height, digest);
"""


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
        self._offload = offload
        self._max_bytes = max_bytes
        self._bytes = 0
        """Of all records, `ROW_BYTES` included."""
        self._used: dict[int, None] = {}
        """Rows that were served since the store opened, the least recently used first."""
        self._index = SemanticIndex()
        self.ours: Callable[[Digest, bytes], bool] = lambda _request_key, _embedding: True
        """Whether placement gives a record to this peer; whoever knows the placement sets it."""
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
        connection, notice = connect_store(path, SCHEMA, "record", clock, databases)
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
    def crowded(self) -> bool:
        """Less than an eighth of the limit is left."""
        return self._max_bytes is not None and self._bytes > self._max_bytes * 7 // 8

    def _put(self, certified: CertifiedRecord, request_key: Digest, hybrid_ppm: int) -> bool:
        record, body = certified.signed.record, canonical.encode(certified)
        with self._guarded(), self._connection:
            if self._connection.execute("SELECT 1 FROM record WHERE digest=?", (record.digest(),)).fetchone():
                return False
            evicted = self._make_room(len(body) + ROW_BYTES)
            cursor = self._connection.execute(
                "INSERT INTO record (digest, request_key, height, hybrid_ppm, embedding, public, stored_ms,"
                " body) VALUES (?,?,?,?,?,?,?,?)",
                (
                    record.digest(),
                    request_key,
                    certified.certificate.header.height,
                    hybrid_ppm,
                    record.embedding,
                    record.visibility == "public",
                    self._clock.now_ms(),
                    body,
                ),
            )
        if evicted:
            log.info("records_evicted count=%d bytes=%d", len(evicted), sum(evicted.values()))
        self._gone(evicted)
        assert cursor.lastrowid is not None
        self._bytes += len(body) + ROW_BYTES
        self._index.add([(cursor.lastrowid, record.embedding)])
        return True

    def _make_room(self, size_bytes: int) -> dict[int, int]:
        """Delete what must go for a record of this size, within the caller's transaction: rows and their sizes."""
        if self._max_bytes is None or (over := self._bytes + size_bytes - self._max_bytes) <= 0:
            return {}
        shelved = self._least_used()
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

    def _least_used(self) -> list[Shelved]:
        """What may be evicted: first what was never served since the store opened, oldest first."""
        settled_ms = self._clock.now_ms() - SETTLE_MS
        columns = "SELECT row, request_key, embedding, length(body) FROM record WHERE stored_ms<=?"
        with closing(self._connection.execute(f"{columns} ORDER BY row", (settled_ms,))) as found:
            rows = list(islice((row for row in found if row[0] not in self._used), CANDIDATES))
        for row in islice(self._used, CANDIDATES - len(rows)):
            rows += self._connection.execute(f"{columns} AND row=?", (settled_ms, row))
        return [Shelved(row, size + ROW_BYTES, self.ours(key, embedding)) for row, key, embedding, size in rows]

    def _gone(self, sizes: dict[int, int]) -> None:
        """Rows of these sizes are deleted."""
        if not sizes:
            return
        self._index.remove(sizes)
        self._bytes -= sum(sizes.values())
        for row in sizes:
            self._used.pop(row, None)

    async def get(self, request_key: Digest, *, public_only: bool = False) -> CertifiedRecord | None:
        """Best record for an exact key: highest hybrid score when stored, then lowest height.

        Args:
            request_key: digest of the canonical request.
            public_only: leave out records with visibility `group` (for strangers).
        """
        sql = (
            "SELECT row, body FROM record WHERE request_key=? AND public>=?"
            " ORDER BY hybrid_ppm DESC, height, digest LIMIT 1"
        )
        return await self._offload.run(lambda: self._one(sql, (request_key, int(public_only)), served=True))

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
        self._connection.close()

    def _one(self, sql: str, arguments: tuple[object, ...], *, served: bool = False) -> CertifiedRecord | None:
        with self._guarded():
            row = self._connection.execute(sql, arguments).fetchone()
        if row is None:
            return None
        if served:
            self._used.pop(row[0], None)
            self._used[row[0]] = None
        try:
            return canonical.decode(row[1], CertifiedRecord, limit_bytes=MAX_CERTIFIED_BYTES)
        except EncodingError as error:
            # Bytes that changed inside a sound page: other holders have the record.
            log.error("record_damaged row=%d error=%s", row[0], error)
            with self._guarded(), self._connection:
                self._connection.execute("DELETE FROM record WHERE row=?", (row[0],))
            self._gone({row[0]: len(row[1]) + ROW_BYTES})
            return None

    @contextmanager
    def _guarded(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"record store {self._path or 'in memory'}: {error}",
                hint="free some space; if the file is damaged, restart: it is moved aside and refilled",
            ) from None


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
