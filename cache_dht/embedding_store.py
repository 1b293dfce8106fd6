"""Shared embeddings in SQLite, this peer's own and others' that it holds. Bounded; the oldest leave first.

Losing some costs their computation, nothing else: writes are not synced one by one, and a damaged file is moved aside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.cache_dht.embedded import SignedEmbedded
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.store_file import StoreFile, connect_store
from nsllm.clock import Clock
from nsllm.databases import ON_DISK, Databases
from nsllm.errors import EncodingError
from nsllm.ids import Address, Digest
from nsllm.offload import InTurn, Offload

ROW_BYTES: Final = 2048
"""What one takes: vector, signature, keys and their indexes."""
MEMBER_PART: Final = 4
"""Of all that are kept, the part that one other member may have made: a quarter."""
FILE: Final = StoreFile(
    name="embedding",
    table="embedding",
    schema="""
CREATE TABLE IF NOT EXISTS embedding (
    row INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    member BLOB NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS embedding_by_member ON embedding (member, row);
""",
    comes_back="embeddings are computed again",
)


class EmbeddingStore:
    """Embeddings by key. Blocking work goes through `Offload`; one call at a time."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None, own: Address, offload: Offload, most: int | None
    ) -> None:
        """Use `open` instead."""
        self._connection = connection
        self._path = path
        self._own = own
        self._offload = InTurn(offload)
        self._most = most
        self.notice: str | None = None
        """What an operator should know about opening: a damaged file that was moved aside."""

    @classmethod
    def open(
        cls,
        path: Path | None,
        own: Address,
        clock: Clock,
        offload: Offload,
        *,
        max_bytes: int | None = None,
        databases: Databases = ON_DISK,
    ) -> EmbeddingStore:
        """Open or create the store at `path` (None: in memory).

        Raises:
            StoreError: the folder cannot be written.
        """
        connection, notice = connect_store(path, FILE, clock, databases)
        connection.execute("PRAGMA synchronous=NORMAL")
        store = cls(connection, path, own, offload, max_bytes and max(MEMBER_PART, max_bytes // ROW_BYTES))
        store.notice = notice
        return store

    async def put(self, embeddings: Sequence[SignedEmbedded]) -> int:
        """Keep embeddings that the caller has verified; how many are new.

        Raises:
            StoreError: disk trouble; none of them was kept.
        """
        rows = [(one.embedded.key(), one.embedded.member, canonical.encode(one)) for one in embeddings]
        own = [(key,) for key, member, _ in rows if member == self._own]

        def work() -> int:
            sql = "INSERT OR IGNORE INTO embedding (key, member, body) VALUES (?,?,?)"
            with self._guarded(), self._connection:
                self._connection.executemany("DELETE FROM embedding WHERE key=?", own)  # what we computed is right
                new = self._connection.executemany(sql, rows).rowcount
                if self._most is not None:
                    for member in {member for _, member, _ in rows} - {self._own}:
                        self._cut("WHERE member=?", (member,), self._most // MEMBER_PART)
                    self._cut("", (), self._most)
            return new

        return await self._offload.run(work)

    async def get(self, keys: Sequence[Digest]) -> dict[Digest, SignedEmbedded]:
        """Those that are here, by key.

        Raises:
            StoreError: disk trouble.
        """

        def work() -> dict[Digest, SignedEmbedded]:
            found: dict[Digest, SignedEmbedded] = {}
            with self._guarded():
                for key in keys:
                    row = self._connection.execute("SELECT body FROM embedding WHERE key=?", (key,)).fetchone()
                    if row is not None:
                        found[key] = canonical.recall(row[0], SignedEmbedded)
            return found

        return await self._offload.run(work)

    async def count(self) -> int:
        """How many there are."""

        def work() -> int:
            with self._guarded():
                return int(self._connection.execute("SELECT count(*) FROM embedding").fetchone()[0])

        return await self._offload.run(work)

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        self._connection.close()

    def _cut(self, where: str, arguments: tuple[object, ...], most: int) -> None:
        """Delete the oldest beyond so many, within the caller's transaction."""
        newest = f"SELECT row FROM embedding {where} ORDER BY row DESC LIMIT 1 OFFSET ?"  # noqa: S608 - our own words
        oldest_kept = self._connection.execute(newest, (*arguments, most)).fetchone()
        if oldest_kept is not None:
            condition = f"{where} AND row<=?" if where else "WHERE row<=?"
            self._connection.execute(f"DELETE FROM embedding {condition}", (*arguments, oldest_kept[0]))  # noqa: S608

    @contextmanager
    def _guarded(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, EncodingError) as error:
            raise StoreError(
                f"embedding store {self._path or 'in memory'}: {error}", hint="free some space, or restart"
            ) from None
