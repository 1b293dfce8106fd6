"""What this validator has committed to: on disk before it is sent, so that no restart makes it contradict itself.

One SQLite file: batches by number, and the records in them. A number and a record are taken once in an epoch, for good;
what blocks have settled is forgotten, because the ledger knows it. Blocking; one caller at a time.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.consensus.batch import BatchCommit, BatchReveal, SignedCommit
from nsllm.consensus.errors import GuardError
from nsllm.consensus.observation_message import MAX_OBSERVATION_BYTES
from nsllm.databases import ON_DISK, Databases
from nsllm.governance.database import Database, in_parts
from nsllm.ids import Address, Digest, Epoch, NetworkId, TimeMs, hex0x

HINT: Final = "restore it from a backup; without it this validator may contradict what it committed to"
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (epoch INTEGER PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batch (
    epoch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    waiting INTEGER NOT NULL,
    signed BLOB NOT NULL,
    rows BLOB NOT NULL,
    PRIMARY KEY (epoch, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
    epoch INTEGER NOT NULL,
    record BLOB NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (epoch, record)
) WITHOUT ROWID;
"""


class BatchLog:
    """Batches of one validator; `close` it when done."""

    def __init__(self, database: Database, network: NetworkId, validator: Address) -> None:
        """Use `open` instead."""
        self._database = database
        self._connection = database.connection
        with database.guarded():
            self._connection.executescript(SCHEMA)
            owner = network + validator
            self._connection.execute("INSERT OR IGNORE INTO meta VALUES ('owner', ?)", (owner,))
            stored = self._connection.execute("SELECT value FROM meta WHERE name = 'owner'").fetchone()[0]
        if stored != owner:
            raise GuardError(
                f"the log of batches is of validator {hex0x(stored[32:])} in network {hex0x(stored[:32])[:18]}",
                hint=f"this peer is {hex0x(validator)} of network {hex0x(network)[:18]}",
            )

    @classmethod
    def open(
        cls,
        path: Path | None,
        network: NetworkId,
        validator: Address,
        *,
        now_ms: TimeMs,
        databases: Databases = ON_DISK,
    ) -> BatchLog:
        """Open or create the log (None: in memory, for tests).

        Raises:
            DamageError: damaged; it is not begun anew, since nobody knows what it held.
            GuardError: another validator's.
            StorageError: no space, or no permission.
        """
        database = Database.open(
            path, what="log of batches", now_ms=now_ms, recover=False, hint=HINT, databases=databases
        )
        try:
            return cls(database, network, validator)
        except BaseException:
            database.close()
            raise

    def next_number(self, epoch: Epoch, now_ms: TimeMs) -> int:
        """The number of this epoch's next batch: above the last one, and not below the clock.

        So a log that was restored from a backup takes no number again, unless the clock went back too.
        """
        return max(self._last_number(epoch) + 1, now_ms)

    def fresh(self, epoch: Epoch, records: Sequence[Digest]) -> list[Digest]:
        """Those of `records` that this validator has neither observed nor abstained from in this epoch."""
        taken: set[bytes] = set()
        with self._database.guarded():
            for places, part in in_parts(records):
                query = f"SELECT record FROM entry WHERE epoch = ? AND record IN ({places})"  # noqa: S608 - question marks
                taken.update(row[0] for row in self._connection.execute(query, (epoch, *part)))
        return [record for record in records if record not in taken]

    def put(self, signed: SignedCommit, reveal: BatchReveal, settled: Sequence[Digest] = ()) -> None:
        """Keep a batch with all of its rows; on return it is on disk and may be sent.

        Args:
            signed: the commit.
            reveal: all rows of it.
            settled: records that blocks have settled since, forgotten in the same transaction: see `settled`.

        Raises:
            GuardError: its number is not above the last one, or one of its records was committed to before. It must
                not be sent.
            StorageError: no space; nothing was kept, and it must not be sent.
        """
        commit = signed.commit
        records = sorted((*commit.record_digests, *commit.abstained))
        with self._database.transaction():
            if commit.number <= self._last_number(commit.epoch):
                raise _repeated(commit)
            self._connection.execute("DELETE FROM batch WHERE epoch < ?", (commit.epoch,))
            self._connection.execute("DELETE FROM entry WHERE epoch < ?", (commit.epoch,))
            self._connection.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (commit.epoch, commit.number))
            self._connection.execute(
                "INSERT INTO batch VALUES (?, ?, ?, ?, ?)",
                (commit.epoch, commit.number, len(records), canonical.encode(signed), canonical.encode(reveal)),
            )
            try:
                self._connection.executemany(
                    "INSERT INTO entry VALUES (?, ?, ?)", [(commit.epoch, record, commit.number) for record in records]
                )
            except sqlite3.IntegrityError:  # the record stands there
                raise _repeated(commit) from None
            self._forget(commit.epoch, settled)

    def outstanding(self, epoch: Epoch, count: int) -> list[tuple[SignedCommit, BatchReveal]]:
        """The newest `count` batches of an epoch with records that are not settled, oldest first."""
        query = "SELECT signed, rows FROM batch WHERE epoch = ? ORDER BY number DESC LIMIT ?"
        with self._database.guarded():
            rows = self._connection.execute(query, (epoch, count)).fetchall()[::-1]
        return [
            (
                canonical.decode(signed, SignedCommit, limit_bytes=MAX_OBSERVATION_BYTES),
                canonical.decode(opened, BatchReveal, limit_bytes=MAX_OBSERVATION_BYTES),
            )
            for signed, opened in rows
        ]

    def settled(self, epoch: Epoch, records: Sequence[Digest]) -> None:
        """Forget records that blocks have settled, and batches without any other."""
        with self._database.transaction():
            self._forget(epoch, records)

    def _forget(self, epoch: Epoch, records: Sequence[Digest]) -> None:
        gone: Counter[int] = Counter()
        for places, part in in_parts(records):
            query = f"DELETE FROM entry WHERE epoch = ? AND record IN ({places}) RETURNING number"  # noqa: S608
            gone.update(row[0] for row in self._connection.execute(query, (epoch, *part)).fetchall())
        self._connection.executemany(
            "UPDATE batch SET waiting = waiting - ? WHERE epoch = ? AND number = ?",
            [(count, epoch, number) for number, count in gone.items()],
        )
        self._connection.executemany(
            "DELETE FROM batch WHERE epoch = ? AND number = ? AND waiting = 0", [(epoch, number) for number in gone]
        )

    def _last_number(self, epoch: Epoch) -> int:
        with self._database.guarded():
            row = self._connection.execute("SELECT number FROM counter WHERE epoch = ?", (epoch,)).fetchone()
        return 0 if row is None else row[0]

    def close(self) -> None:
        """Close the file; what was put stays."""
        self._database.close()


def _repeated(commit: BatchCommit) -> GuardError:
    return GuardError(
        f"refused to commit to batch {commit.number} of epoch {commit.epoch}: "
        "its number or a record of it was committed to before",
        hint="if this repeats, another process runs with this key",
    )
