"""Completions that this peer gave out, and the records behind them: what `/v1/receipts/{id}` and the publisher read.

A record is on disk before it is submitted, so a peer that was killed goes on publishing after its restart.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import quote

import trio

from nsllm import canonical
from nsllm.clock import Clock
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedScores
from nsllm.databases import ON_DISK, Databases
from nsllm.errors import EncodingError
from nsllm.governance.database import Database, in_parts
from nsllm.governance.errors import StorageError
from nsllm.ids import Digest, TimeMs
from nsllm.node.old_completions import forget
from nsllm.offload import Offload
from nsllm.record import MAX_RECORD_BYTES, SignedRecord

log = logging.getLogger(__name__)

NOTES: Final = 128
"""Completions without a record that are written together."""
R = TypeVar("R")
State = Literal["pending", "certified", "none"]
_Row = tuple[str, str, str, None, TimeMs]
"""A completion without a record, as the table has it."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS completion (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    record BLOB,
    created_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS record (digest BLOB PRIMARY KEY, body BLOB NOT NULL, own INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS scores (record BLOB PRIMARY KEY, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS completion_by_state ON completion (state, created_ms);
CREATE INDEX IF NOT EXISTS completion_by_record ON completion (record);
"""
TABLES: Final = ("record", "scores", "completion")
GET: Final = """
SELECT id, state, detail, record.body, created_ms, scores.body FROM completion
LEFT JOIN record ON completion.record = record.digest
LEFT JOIN scores ON completion.record = scores.record
WHERE id = ?
"""
PUT_SCORES: Final = "INSERT OR IGNORE INTO scores VALUES (?,?)"
UNPUBLISHED: Final = """
SELECT id, state, detail, record.body, created_ms, NULL FROM completion
JOIN record ON completion.record = record.digest
WHERE state = 'pending' AND own = 1 ORDER BY created_ms, id LIMIT ?
"""


@dataclass(slots=True, eq=False)
class _Job:
    """What one caller wants written."""

    work: Callable[[], None]
    done: bool = False
    error: StorageError | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer that was given out."""

    completion_id: str
    state: State
    """`pending`: its record waits for a certificate; `none`: there will be no receipt, `detail` says why."""
    detail: str
    signed: SignedRecord | None
    created_ms: TimeMs
    scores: CertifiedScores | None
    """Those that the record came with from somebody else; None where our own ledger is asked."""


class Completions:
    """SQLite table of completions.

    What has a record is synced before a call returns. That there is none is noted, and written with the next call that
    writes anyway, after `NOTES` of them, or at the end.
    """

    def __init__(self, database: Database, offload: Offload, notice: str | None) -> None:
        """Use `open` instead."""
        self._database = database
        self._connection = database.connection
        self._offload = offload
        self._lock = trio.Lock()
        self._cached: Callable[[Digest], None] = lambda _record: None
        self._ended: Callable[[Digest], None] = lambda _record: None
        self._waiting: list[_Job] = []
        self._notes: dict[str, tuple[str, TimeMs]] = {}
        """Detail and time of completions without a record that are not written yet."""
        self.notice = notice
        """What an operator should know about opening: a damaged file that was moved aside."""

    @classmethod
    async def open(
        cls, path: Path | None, clock: Clock, offload: Offload, databases: Databases = ON_DISK
    ) -> Completions:
        """Open or create the table at `path` (None: in memory).

        A damaged file is moved aside with a notice, and what can still be read of it is taken over.

        Raises:
            StorageError: no space, or no permission; says what to do.
        """

        def work() -> Completions:
            hint = "move the file aside and start again"
            database = Database.open(
                path, what="completions", now_ms=clock.now_ms(), recover=True, hint=hint, databases=databases
            )
            with database.guarded():
                database.connection.executescript(SCHEMA)
            notice = database.notice
            if database.aside is not None:
                with database.transaction():
                    rows = sum(salvage(database.aside, database.connection, table) for table in TABLES)
                log.warning("completions_salvaged rows=%d from=%s", rows, database.aside)
                notice = f"{notice}; {rows} rows of it could be read and stand in the new one"
            return cls(database, offload, notice)

        return await offload.run(work)

    async def add(
        self,
        completion_id: str,
        state: State,
        detail: str,
        signed: SignedRecord | None,
        now_ms: TimeMs,
        *,
        own: bool,
        scores: CertifiedScores | None = None,
    ) -> None:
        """Write a completion, with the record that it stands on.

        Args:
            completion_id: `chatcmpl-…`.
            state: `pending` only with a record.
            detail: reason, for state `none`.
            signed: the record; None for private and withheld answers.
            now_ms: wall time.
            own: True if this peer generated the record and therefore publishes it.
            scores: those that a cached record came with.
        """

        def work() -> None:
            digest = None
            if signed is not None:
                digest = signed.record.digest()
                body = canonical.encode(signed)
                self._connection.execute("INSERT OR IGNORE INTO record VALUES (?,?,?)", (digest, body, own))
            if scores is not None:
                self._connection.execute(PUT_SCORES, (digest, canonical.encode(scores)))
            self._connection.execute(
                "INSERT INTO completion VALUES (?,?,?,?,?)", (completion_id, state, detail, digest, now_ms)
            )

        await self._transaction(work)
        if signed is not None and not own:
            self._cached(signed.record.digest())

    def watch_cached(self, watcher: Callable[[Digest], None]) -> None:
        """Call `watcher` with each record of somebody else that an answer was taken from; it must not block."""
        self._cached = watcher

    def watch_ended(self, watcher: Callable[[Digest], None]) -> None:
        """Call `watcher` with each record of which it is written what became of it; it must not block."""
        self._ended = watcher

    async def note(self, completion_id: str, detail: str, now_ms: TimeMs) -> None:
        """A completion that has no record and will have none: private, withheld or unpublished; `detail` says which.

        A peer that is killed may forget its last ones, and says then that it never gave them out.
        """
        self._notes[completion_id] = (detail, now_ms)
        if len(self._notes) >= NOTES:
            try:
                await self._transaction(lambda: None)
            except StorageError as error:  # it costs the oldest note, and no answer
                log.error("completion_forgotten reason=%s", error.message)
                del self._notes[next(iter(self._notes))]

    async def settle(self, record: Digest, state: State, detail: str, scores: CertifiedScores | None = None) -> None:
        """Every pending completion that stands on `record` has reached its end.

        Args:
            record: its digest.
            state: `certified` or `none`.
            detail: reason, for state `none`.
            scores: those that somebody else gave us, where our own ledger cannot prove any.
        """

        def work() -> None:
            if scores is not None:
                self._connection.execute(PUT_SCORES, (record, canonical.encode(scores)))
            self._connection.execute(
                "UPDATE completion SET state=?, detail=? WHERE record=? AND state='pending'", (state, detail, record)
            )

        await self._transaction(work)
        self._ended(record)

    async def get(self, completion_id: str) -> Completion | None:
        """One completion."""
        if completion_id in self._notes:
            detail, created_ms = self._notes[completion_id]
            return Completion(completion_id, "none", detail, None, created_ms, None)

        def work() -> Completion | None:
            row = self._connection.execute(GET, (completion_id,)).fetchone()
            return _completion(row) if row else None

        return await self._read(work)

    async def unpublished(self, limit: int) -> tuple[Completion, ...]:
        """Own completions whose record waits for a certificate, oldest first."""

        def work() -> tuple[Completion, ...]:
            rows = self._connection.execute(UNPUBLISHED, (limit,)).fetchall()
            return tuple(_completion(row) for row in rows)

        return await self._read(work)

    async def unused(self, records: Sequence[Digest]) -> tuple[Digest, ...]:
        """Those of some records on which no completion stands, finished or not."""

        def work() -> tuple[Digest, ...]:
            used: set[Digest] = set()
            for places, part in in_parts(records):
                query = f"SELECT record FROM completion WHERE record IN ({places})"  # noqa: S608 - question marks
                used.update(Digest(row[0]) for row in self._connection.execute(query, part))
            return tuple(record for record in records if record not in used)

        return await self._read(work)

    async def forget(self, now_ms: TimeMs, *, keep: int, keep_ms: int) -> int:
        """Delete some finished completions, see `nsllm.node.old_completions.forget`; how many went. 0: none is left."""
        gone = 0

        def work() -> None:
            nonlocal gone
            gone = forget(self._connection, now_ms, keep=keep, keep_ms=keep_ms)

        await self._transaction(work)
        return gone

    async def close(self) -> None:
        """Write what is noted and close the database."""
        if self._notes:
            with suppress(StorageError):  # a full disk: only that there are no receipts is lost
                await self._transaction(lambda: None)
        async with self._lock:
            await self._offload.run(self._database.close)

    async def _read(self, work: Callable[[], R]) -> R:
        """Needs no space: receipts are there on a full disk too."""

        def guarded() -> R:
            with self._database.guarded():
                return work()

        async with self._lock:
            return await self._offload.run(guarded)

    async def _transaction(self, work: Callable[[], None]) -> None:
        """Return once `work` is written and synced: with what others want written meanwhile, in one transaction."""
        job = _Job(work)
        self._waiting.append(job)
        try:
            async with self._lock:
                if not job.done:
                    await self._write()
        finally:
            if job in self._waiting:  # cancelled before its turn
                self._waiting.remove(job)
        if job.error is not None:
            raise job.error

    async def _write(self) -> None:
        """Write what waits; what one caller wants and cannot have costs no other."""
        jobs, self._waiting = self._waiting, []
        notes: list[_Row] = [(noted, "none", detail, None, at) for noted, (detail, at) in self._notes.items()]
        try:
            written = await self._offload.run(lambda: self._written(jobs, notes))
        except BaseException:  # cancelled before it began, or a bug: everybody tries for itself
            self._waiting = [*jobs, *self._waiting]
            raise
        for noted, *_ in written:
            del self._notes[noted]
        for job in jobs:
            job.done = True

    def _written(self, jobs: Sequence[_Job], notes: Sequence[_Row]) -> Sequence[_Row]:
        """The notes, if they are written now; each job knows what became of it."""
        try:
            with self._database.transaction():
                self._connection.executemany("INSERT INTO completion VALUES (?,?,?,?,?)", notes)
                for job in jobs:
                    job.work()
        except StorageError as error:
            if len(jobs) == 1:
                jobs[0].error = error
                return ()
        else:
            return notes
        done: Sequence[_Row] = ()
        for job in jobs:
            done = self._written([job], () if done else notes) or done
        return done


def salvage(damaged: Path, into: sqlite3.Connection, table: str) -> int:
    """Rows of `table` that can still be read from a damaged file, put into the same table of another database.

    The table is read from both ends: one damaged page costs the rows of that page.
    """
    copied = 0
    try:
        source = sqlite3.connect(f"file:{quote(str(damaged))}?mode=ro", uri=True)
    except sqlite3.DatabaseError:
        return 0
    with closing(source):
        for order in ("ASC", "DESC"):
            with suppress(sqlite3.DatabaseError):
                for row in source.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"):  # noqa: S608 - our tables
                    marks = ",".join("?" * len(row))
                    copied += into.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row).rowcount  # noqa: S608
    return copied


def _completion(row: tuple[str, State, str, bytes | None, int, bytes | None]) -> Completion:
    completion_id, state, detail, body, created_ms, proof = row
    signed = scores = None
    try:
        if body is not None:
            signed = canonical.decode(body, SignedRecord, limit_bytes=MAX_RECORD_BYTES)
        if proof is not None:
            scores = canonical.decode(proof, CertifiedScores, limit_bytes=MAX_CERTIFIED_BYTES)
    except EncodingError as error:
        # Bytes that changed inside a page that is sound otherwise.
        log.error("completion_damaged id=%s error=%s", completion_id, error)
        return Completion(completion_id, "none", "its stored record is damaged", None, TimeMs(created_ms), None)
    return Completion(completion_id, state, detail, signed, TimeMs(created_ms), scores)
