"""The record store: certified records in SQLite (WAL mode), with the FAISS index kept in step.

What `put` acknowledges survives `kill -9`: the transaction is synced before it returns. The index lives in memory and
is rebuilt from the table when the store opens. A damaged database is moved aside, never repaired in place: the records
come back from the other holders.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.index import SemanticIndex
from nsllm.clock import Clock
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
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

    def __init__(self, connection: sqlite3.Connection, path: Path | None, clock: Clock, offload: Offload) -> None:
        """Use `open` instead."""
        self._connection = connection
        self._path = path
        self._clock = clock
        self._offload = offload
        self._index = SemanticIndex()
        self.notice: str | None = None
        """What an operator should know about opening: a damaged file that was moved aside."""

    @classmethod
    def open(cls, path: Path | None, clock: Clock, offload: Offload) -> RecordStore:
        """Open or create the store at `path` (None: in memory, for simulations).

        A file that is not a sound database is moved to `<name>.damaged-<ms>` with a notice, and a new one is begun.

        Raises:
            StoreError: the folder cannot be written.
        """
        notice = None
        try:
            connection = _connect(path)
        except sqlite3.DatabaseError as error:
            if path is None or isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"cannot open record store {path}: {error}", hint="check space and modes") from None
            aside = path.with_name(f"{path.name}.damaged-{clock.now_ms()}")
            path.rename(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            notice = f"record store was damaged ({error}); moved to {aside.name}, records return from other holders"
            log.error("store_damaged path=%s aside=%s", path, aside)
            connection = _connect(path)
        store = cls(connection, path, clock, offload)
        store.notice = notice
        with store._guarded():
            store._index.add(connection.execute("SELECT row, embedding FROM record ORDER BY row"))
        return store

    async def put(self, certified: CertifiedRecord, request_key: Digest, hybrid_ppm: int) -> bool:
        """Store a record that the caller has verified; True if it is new, on disk before this returns.

        Raises:
            StoreError: full disk or damaged page; nothing was stored.
        """
        return await self._offload.run(lambda: self._put(certified, request_key, hybrid_ppm))

    def _put(self, certified: CertifiedRecord, request_key: Digest, hybrid_ppm: int) -> bool:
        record = certified.signed.record
        with self._guarded(), self._connection:
            cursor = self._connection.execute(
                "INSERT OR IGNORE INTO record (digest, request_key, height, hybrid_ppm, embedding, public, stored_ms,"
                " body) VALUES (?,?,?,?,?,?,?,?)",
                (
                    record.digest(),
                    request_key,
                    certified.certificate.header.height,
                    hybrid_ppm,
                    record.embedding,
                    record.visibility == "public",
                    self._clock.now_ms(),
                    canonical.encode(certified),
                ),
            )
            new = cursor.rowcount == 1
            row = cursor.lastrowid
        if new and row is not None:
            self._index.add([(row, record.embedding)])
        return new

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
        return await self._offload.run(lambda: self._one(sql, (request_key, int(public_only))))

    async def by_digest(self, digest: Digest) -> CertifiedRecord | None:
        """The record with this digest."""
        return await self._offload.run(lambda: self._one("SELECT row, body FROM record WHERE digest=?", (digest,)))

    async def near(self, embedding: bytes, count: int) -> tuple[tuple[CertifiedRecord, float], ...]:
        """At most `count` records whose question is nearest, with their cosines, nearest first."""

        def work() -> tuple[tuple[CertifiedRecord, float], ...]:
            found = self._index.search(embedding, count)
            rows = [(self._one("SELECT row, body FROM record WHERE row=?", (n.row,)), n.cosine) for n in found]
            return tuple((record, cosine) for record, cosine in rows if record is not None)

        return await self._offload.run(work)

    async def forget(self, digest: Digest) -> bool:
        """Delete a record; True if it was there."""

        def work() -> bool:
            with self._guarded(), self._connection:
                found = self._connection.execute("SELECT row FROM record WHERE digest=?", (digest,)).fetchone()
                if found is None:
                    return False
                self._connection.execute("DELETE FROM record WHERE row=?", found)
            self._index.remove([found[0]])
            return True

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

    def _one(self, sql: str, arguments: tuple[object, ...]) -> CertifiedRecord | None:
        with self._guarded():
            row = self._connection.execute(sql, arguments).fetchone()
        if row is None:
            return None
        try:
            return canonical.decode(row[1], CertifiedRecord, limit_bytes=MAX_CERTIFIED_BYTES)
        except EncodingError as error:
            # Bytes that changed inside a sound page: other holders have the record.
            log.error("record_damaged row=%d error=%s", row[0], error)
            with self._guarded(), self._connection:
                self._connection.execute("DELETE FROM record WHERE row=?", (row[0],))
            self._index.remove([row[0]])
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


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        connection.executescript(SCHEMA)
        connection.execute("SELECT count(*) FROM record").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
