"""Proofs that outlive their blocks: of this peer's own records, and of every record that validators took back.

So a peer hands out receipts of its own records at any height, as long as it keeps what it answered, and tells whoever
has one that a record was retracted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from nsllm import canonical
from nsllm.errors import EncodingError
from nsllm.governance.database import RECOVERY_HINT
from nsllm.governance.errors import DamageError
from nsllm.governance.record_proof import RecordProof
from nsllm.governance.retraction import RetractionProof
from nsllm.ids import Digest, hex0x

MAX_PROOF_BYTES: Final = 1024 * 1024
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS kept_proof (record BLOB PRIMARY KEY, proof BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS retraction (
    position INTEGER PRIMARY KEY,
    record BLOB NOT NULL UNIQUE,
    proof BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS wanted (record BLOB PRIMARY KEY) WITHOUT ROWID;
"""
RECORDS: Final = """
SELECT record FROM kept_proof WHERE record > ?1 UNION SELECT record FROM wanted WHERE record > ?1
ORDER BY record LIMIT ?2
"""


class KeptProofs:
    """Table of proofs, without the handovers that they share; transactions are the caller's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Make missing tables."""
        self._connection = connection
        connection.executescript(SCHEMA)

    def want(self, record: Digest) -> None:
        """Keep this record's proof when its block goes, whoever generated it."""
        self._connection.execute("INSERT OR IGNORE INTO wanted VALUES (?)", (record,))

    def is_wanted(self, record: Digest) -> bool:
        """Was it asked to keep this one?"""
        return self._connection.execute("SELECT 1 FROM wanted WHERE record = ?", (record,)).fetchone() is not None

    def put(self, proof: RecordProof) -> None:
        """Keep a proof; the last one of a record counts."""
        data = canonical.encode(replace(proof, epochs=(), retraction=None))
        self._connection.execute("INSERT OR REPLACE INTO kept_proof VALUES (?, ?)", (proof.leaf.record, data))
        self._connection.execute("DELETE FROM wanted WHERE record = ?", (proof.leaf.record,))

    def get(self, record: Digest) -> RecordProof | None:
        """A kept proof, without handovers.

        Raises:
            DamageError: not what was written.
        """
        row = self._connection.execute("SELECT proof FROM kept_proof WHERE record = ?", (record,)).fetchone()
        try:
            return canonical.decode(row[0], RecordProof, limit_bytes=MAX_PROOF_BYTES) if row is not None else None
        except EncodingError as error:
            raise DamageError(f"kept proof of {hex0x(record)}: {error.message}", hint=RECOVERY_HINT) from None

    def records(self, after: Digest | None, count: int) -> list[Digest]:
        """At most `count` records with a kept or wanted proof, ascending above `after`."""
        rows = self._connection.execute(RECORDS, (after or b"", count))
        return [Digest(row[0]) for row in rows]

    def forget(self, records: Sequence[Digest]) -> None:
        """Neither keep nor want the proofs of these any longer."""
        for table in ("kept_proof", "wanted"):
            sql = f"DELETE FROM {table} WHERE record = ?"  # noqa: S608 - our own names
            self._connection.executemany(sql, [(record,) for record in records])

    def put_retraction(self, record: Digest, proof: RetractionProof) -> None:
        """Keep the proof that a record was taken back, after those of earlier ones."""
        data = canonical.encode(proof)
        self._connection.execute("INSERT OR IGNORE INTO retraction (record, proof) VALUES (?, ?)", (record, data))

    def retraction(self, record: Digest) -> RetractionProof | None:
        """The proof that a record was taken back; None if it was not."""
        row = self._connection.execute("SELECT proof FROM retraction WHERE record = ?", (record,)).fetchone()
        return None if row is None else _retraction(row[0])

    def retractions(self, start: int, count: int) -> list[RetractionProof]:
        """Proofs from the `start`-th on, in order."""
        query = "SELECT proof FROM retraction ORDER BY position LIMIT ? OFFSET ?"
        return [_retraction(row[0]) for row in self._connection.execute(query, (count, start))]


def _retraction(data: bytes) -> RetractionProof:
    try:
        return canonical.decode(data, RetractionProof, limit_bytes=MAX_PROOF_BYTES)
    except EncodingError as error:
        raise DamageError(f"proof of a retraction: {error.message}", hint=RECOVERY_HINT) from None
