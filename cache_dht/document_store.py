"""The document store: signed chunks in SQLite (WAL mode) beside the records, with an index of their meaning.

Chunks are this peer's own, or others' that placement gave it to hold. What `put` acknowledges survives `kill -9`. The
store is bounded: others' chunks leave when placement has given them to somebody else, and no other member has more than
its share of the space. Withdrawals stay, so that what was taken back does not return from a holder that was away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.index import SemanticIndex
from nsllm.cache_dht.store_file import StoreFile, connect_store
from nsllm.cache_dht.withdrawal import SignedWithdrawal
from nsllm.clock import Clock
from nsllm.databases import ON_DISK, Databases
from nsllm.errors import EncodingError
from nsllm.ids import Address, Digest, TimeMs
from nsllm.offload import InTurn, Offload
from nsllm.record import MAX_CHUNK_BYTES, SignedChunk

ROW_BYTES: Final = 1024
"""What a chunk takes beside its encoded form."""
MEMBER_PART: Final = 4
"""Of the whole limit, the part that one other member's chunks may take: a quarter."""
WITHDRAWALS: Final = 4096
"""That are kept of one member, the latest."""
FILE: Final = StoreFile(
    name="document",
    table="chunk",
    schema="""
CREATE TABLE IF NOT EXISTS chunk (
    row INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    member BLOB NOT NULL,
    document BLOB NOT NULL,
    number INTEGER NOT NULL,
    source TEXT NOT NULL,
    embedding BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS chunk_by_document ON chunk (member, document, number);
CREATE TABLE IF NOT EXISTS withdrawal (
    member BLOB NOT NULL,
    document BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (member, document)
) WITHOUT ROWID;
""",
    comes_back="others' chunks return from them, yours when you take the documents in again",
)


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """One document, as far as it is stored here."""

    member: Address
    document: Digest
    source: str
    chunks: int
    size_bytes: int
    created_ms: TimeMs
    """When its first chunk was taken in."""


@dataclass(frozen=True, slots=True)
class DocumentStats:
    """Size of the store."""

    documents: int
    own_documents: int
    chunks: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Outlined:
    """A chunk without its text."""

    digest: Digest
    member: Address
    document: Digest
    embedding: bytes
    created_ms: TimeMs


@dataclass(frozen=True, slots=True)
class NearChunk:
    """A chunk near an embedding."""

    signed: SignedChunk
    cosine: float


class DocumentStore:
    """Chunks by digest, by document and by meaning. Blocking work goes through `Offload`; one call at a time."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None, own: Address, offload: Offload, max_bytes: int | None
    ) -> None:
        """Use `open` instead."""
        self._connection = connection
        self._path = path
        self._own = own
        self._offload = InTurn(offload)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._index = SemanticIndex()
        self.ours: Callable[[bytes], bool] = lambda _embedding: True
        """Whether placement gives a chunk with this embedding to this peer; whoever knows the placement sets it."""
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
    ) -> DocumentStore:
        """Open or create the store at `path` (None: in memory); a damaged file is moved to `<name>.damaged-<ms>`.

        Raises:
            StoreError: the folder cannot be written.
        """
        connection, notice = connect_store(path, FILE, clock, databases)
        store = cls(connection, path, own, offload, max_bytes)
        store.notice = notice
        with store._guarded():
            store._bytes = connection.execute("SELECT coalesce(sum(size_bytes), 0) FROM chunk").fetchone()[0]
            store._index.add(connection.execute("SELECT row, embedding FROM chunk ORDER BY row"))
        return store

    async def put(self, chunks: Sequence[SignedChunk]) -> int:
        """Store chunks that the caller has verified; how many are new, on disk before this returns.

        Those that were withdrawn are passed over.

        Raises:
            StoreError: disk trouble, or no room; none of them was stored.
        """
        return await self._offload.run(lambda: self._put(chunks))

    def _put(self, chunks: Sequence[SignedChunk]) -> int:
        fresh = {signed.chunk.digest(): signed for signed in chunks}
        added: list[tuple[int, bytes]] = []
        grown = 0
        with self._guarded(), self._connection:
            for digest in self._known(list(fresh)):
                del fresh[digest]
            rows = [
                (digest, signed, body, len(body) + ROW_BYTES)
                for digest, signed in fresh.items()
                if not self._withdrawn(signed)
                for body in [canonical.encode(signed)]
            ]
            evicted = self._make_room([(signed.chunk.member, size) for _, signed, _, size in rows])
            for digest, signed, body, size in rows:
                chunk = signed.chunk
                cursor = self._connection.execute(
                    "INSERT INTO chunk (digest, member, document, number, source, embedding, created_ms, size_bytes,"
                    " body) VALUES (?,?,?,?,?,?,?,?,?)",
                    (
                        digest,
                        chunk.member,
                        chunk.document,
                        chunk.number,
                        chunk.source,
                        chunk.embedding,
                        chunk.created_ms,
                        size,
                        body,
                    ),
                )
                assert cursor.lastrowid is not None
                added.append((cursor.lastrowid, chunk.embedding))
                grown += size
        self._gone(evicted)
        self._bytes += grown
        self._index.add(added)
        return len(added)

    def _make_room(self, wanted: Sequence[tuple[Address, int]]) -> dict[int, int]:
        """Delete what must go for chunks of these members and sizes: rows and their sizes."""
        if self._max_bytes is None or not wanted:
            return {}
        share = self._max_bytes // MEMBER_PART
        by_member: dict[Address, int] = {}
        for member, size in wanted:
            by_member[member] = by_member.get(member, 0) + size
        for member, size in by_member.items():
            held = "SELECT coalesce(sum(size_bytes), 0) FROM chunk WHERE member=?"
            if member != self._own and self._connection.execute(held, (member,)).fetchone()[0] + size > share:
                raise StoreError(f"chunks of one member take more than their share of {share} bytes here")
        over = self._bytes + sum(by_member.values()) - self._max_bytes
        if over <= 0:
            return {}
        gone: dict[int, int] = {}
        sql = "SELECT row, embedding, size_bytes FROM chunk WHERE member<>? ORDER BY row"
        for row, embedding, size in self._connection.execute(sql, (self._own,)).fetchall():
            if sum(gone.values()) >= over:
                break
            if not self.ours(embedding):
                gone[row] = size
        if sum(gone.values()) < over:
            raise StoreError(
                f"document store {self._path or 'in memory'} is full: {self._bytes} bytes of {self._max_bytes}",
                hint="raise documents.max_mb, or remove documents with `nsllm documents remove`",
            )
        self._connection.executemany("DELETE FROM chunk WHERE row=?", [(row,) for row in gone])
        return gone

    def _gone(self, sizes: dict[int, int]) -> None:
        self._index.remove(sizes)
        self._bytes -= sum(sizes.values())

    def _known(self, digests: Sequence[Digest]) -> list[Digest]:
        sql = "SELECT 1 FROM chunk WHERE digest=?"
        return [digest for digest in digests if self._connection.execute(sql, (digest,)).fetchone()]

    def _withdrawn(self, signed: SignedChunk) -> bool:
        chunk = signed.chunk
        sql = "SELECT 1 FROM withdrawal WHERE member=? AND document=? AND at_ms>=?"
        return self._connection.execute(sql, (chunk.member, chunk.document, chunk.created_ms)).fetchone() is not None

    async def lacking(self, digests: Sequence[Digest]) -> tuple[Digest, ...]:
        """Those that are not here."""

        def work() -> tuple[Digest, ...]:
            with self._guarded():
                known = set(self._known(digests))
            return tuple(digest for digest in digests if digest not in known)

        return await self._offload.run(work)

    async def numbers(self, member: Address, document: Digest) -> tuple[str, frozenset[int]]:
        """What is here of a document: its source ("" if nothing is), and the numbers of its chunks."""

        def work() -> tuple[str, frozenset[int]]:
            with self._guarded():
                sql = "SELECT source, number FROM chunk WHERE member=? AND document=?"
                rows = self._connection.execute(sql, (member, document)).fetchall()
            return (rows[0][0] if rows else "", frozenset(number for _, number in rows))

        return await self._offload.run(work)

    async def near(self, embedding: bytes, count: int, *, least: float = -1.0) -> tuple[NearChunk, ...]:
        """At most `count` chunks nearest to an embedding, nearest first.

        Args:
            embedding: 384 signed bytes.
            count: how many.
            least: cosine below which none is given.
        """

        def work() -> tuple[NearChunk, ...]:
            with self._guarded():
                found = [
                    (self._connection.execute("SELECT body FROM chunk WHERE row=?", (n.row,)).fetchone(), n.cosine)
                    for n in self._index.search(embedding, count)
                    if n.cosine >= least
                ]
            return tuple(NearChunk(_decoded(row[0]), cosine) for row, cosine in found if row is not None)

        return await self._offload.run(work)

    async def outline(self) -> tuple[Outlined, ...]:
        """Every chunk without its text, in the order in which they came: what placement is asked about."""

        def work() -> tuple[Outlined, ...]:
            with self._guarded():
                sql = "SELECT digest, member, document, embedding, created_ms FROM chunk ORDER BY row"
                rows = self._connection.execute(sql).fetchall()
            return tuple(Outlined(Digest(a), Address(b), Digest(c), d, TimeMs(e)) for a, b, c, d, e in rows)

        return await self._offload.run(work)

    async def by_digests(self, digests: Iterable[Digest]) -> tuple[SignedChunk, ...]:
        """The chunks with these digests, those that are here."""
        wanted = list(digests)

        def work() -> tuple[SignedChunk, ...]:
            sql = "SELECT body FROM chunk WHERE digest=?"
            with self._guarded():
                rows = [self._connection.execute(sql, (digest,)).fetchone() for digest in wanted]
            return tuple(_decoded(row[0]) for row in rows if row is not None)

        return await self._offload.run(work)

    async def documents(self, member: Address | None = None) -> tuple[DocumentRow, ...]:
        """Documents that there are chunks of here, by source; None: everybody's."""

        def work() -> tuple[DocumentRow, ...]:
            sql = (
                "SELECT member, document, min(source), count(*), sum(size_bytes), min(created_ms) FROM chunk"
                " WHERE ?1 IS NULL OR member=?1 GROUP BY member, document ORDER BY min(source), document, member"
            )
            with self._guarded():
                rows = self._connection.execute(sql, (member,)).fetchall()
            return tuple(
                DocumentRow(Address(who), Digest(document), source, chunks, size, TimeMs(created))
                for who, document, source, chunks, size, created in rows
            )

        return await self._offload.run(work)

    async def withdraw(self, signed: SignedWithdrawal) -> int:
        """Forget the chunks that a verified withdrawal covers, and keep it; how many chunks those were."""

        def work() -> int:
            one = signed.withdrawal
            key = (one.member, one.document)
            with self._guarded(), self._connection:
                self._connection.execute(
                    "INSERT INTO withdrawal VALUES (?,?,?,?) ON CONFLICT (member, document) DO UPDATE"
                    " SET at_ms=excluded.at_ms, body=excluded.body WHERE excluded.at_ms > at_ms",
                    (*key, one.at_ms, canonical.encode(signed)),
                )
                sql = "DELETE FROM chunk WHERE member=? AND document=? AND created_ms<=? RETURNING row, size_bytes"
                gone = dict(self._connection.execute(sql, (*key, one.at_ms)).fetchall())
                self._connection.execute(
                    "DELETE FROM withdrawal WHERE member=?1 AND document IN (SELECT document FROM withdrawal"
                    " WHERE member=?1 ORDER BY at_ms DESC, document LIMIT -1 OFFSET ?2)",
                    (one.member, WITHDRAWALS),
                )
            self._gone(gone)
            return len(gone)

        return await self._offload.run(work)

    async def withdrawals(self, documents: Iterable[tuple[Address, Digest]]) -> tuple[SignedWithdrawal, ...]:
        """What was withdrawn of these documents (member, digest)."""
        wanted = list(dict.fromkeys(documents))

        def work() -> tuple[SignedWithdrawal, ...]:
            sql = "SELECT body FROM withdrawal WHERE member=? AND document=?"
            with self._guarded():
                rows = [self._connection.execute(sql, key).fetchone() for key in wanted]
            return tuple(_withdrawal(row[0]) for row in rows if row is not None)

        return await self._offload.run(work)

    async def own_withdrawals(self, most: int) -> tuple[SignedWithdrawal, ...]:
        """What this peer's member withdrew, the latest first."""

        def work() -> tuple[SignedWithdrawal, ...]:
            sql = "SELECT body FROM withdrawal WHERE member=? ORDER BY at_ms DESC, document LIMIT ?"
            with self._guarded():
                rows = self._connection.execute(sql, (self._own, most)).fetchall()
            return tuple(_withdrawal(row[0]) for row in rows)

        return await self._offload.run(work)

    async def stats(self) -> DocumentStats:
        """Counts for the status page."""

        def work() -> DocumentStats:
            with self._guarded():
                sql = (
                    "SELECT count(DISTINCT member || document), count(DISTINCT iif(member=?, document, NULL)),"
                    " count(*) FROM chunk"
                )
                documents, own, chunks = self._connection.execute(sql, (self._own,)).fetchone()
            return DocumentStats(documents, own, chunks, self._bytes)

        return await self._offload.run(work)

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        self._connection.close()

    @contextmanager
    def _guarded(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"document store {self._path or 'in memory'}: {error}",
                hint="free some space; if the file is damaged, restart: it is moved aside",
            ) from None


def _decoded(body: bytes) -> SignedChunk:
    try:
        return canonical.decode(body, SignedChunk, limit_bytes=MAX_CHUNK_BYTES)
    except EncodingError as error:
        raise StoreError(f"a stored chunk is damaged: {error.message}") from None


def _withdrawal(body: bytes) -> SignedWithdrawal:
    try:
        return canonical.decode(body, SignedWithdrawal, limit_bytes=MAX_CHUNK_BYTES)
    except EncodingError as error:
        raise StoreError(f"a stored withdrawal is damaged: {error.message}") from None
