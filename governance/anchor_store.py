"""Anchors of the network log in a ledger's file, and their proofs. Blocking; transactions are the caller's."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from nsllm.ids import Digest, Height, TimeMs


@dataclass(frozen=True, slots=True)
class AnchorRow:
    """One anchor of the network log."""

    log_size: int
    log_root: Digest
    header_height: Height
    """Height of the header that was anchored."""
    transaction_hash: Digest
    transaction_height: Height
    """Height of the block that carried the transaction."""
    time_ms: TimeMs
    proof_height: Height | None
    """Height of the header that certifies the state root with the anchor; None while there is none."""
    proof: bytes | None
    """Canonical `AnchorProof` against that state root."""


class AnchorStore:
    """Table of anchors; a part of `BlockStore`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """On tables that `BlockStore` has made."""
        self._connection = connection

    def put(self, anchor: AnchorRow) -> None:
        """Store an executed anchor, not yet certified."""
        self._connection.execute(
            "INSERT INTO anchor VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                anchor.log_size,
                anchor.log_root,
                anchor.header_height,
                anchor.transaction_hash,
                anchor.transaction_height,
                anchor.time_ms,
                anchor.proof_height,
                anchor.proof,
            ),
        )

    def unproved(self) -> list[int]:
        """Log sizes that are anchored and whose state root no header has certified yet."""
        rows = self._connection.execute("SELECT log_size FROM anchor WHERE proof IS NULL ORDER BY log_size")
        return [row[0] for row in rows]

    def prove(self, log_size: int, height: Height, proof: bytes) -> None:
        """Keep the proof of an anchor against the state root that the header at `height` certifies."""
        self._connection.execute(
            "UPDATE anchor SET proof_height = ?, proof = ? WHERE log_size = ?", (height, proof, log_size)
        )

    def covering(self, log_size: int) -> AnchorRow | None:
        """The first proved anchor of a log of at least `log_size` entries."""
        query = "SELECT * FROM anchor WHERE log_size >= ? AND proof IS NOT NULL ORDER BY log_size LIMIT 1"
        row = self._connection.execute(query, (log_size,)).fetchone()
        return None if row is None else AnchorRow(*row)

    def newest(self) -> Height:
        """Height of the header of the newest proved anchor; 0 before the first."""
        row = self._connection.execute("SELECT max(header_height) FROM anchor WHERE proof IS NOT NULL").fetchone()
        return Height(row[0] or 0)

    def rows(self, count: int) -> tuple[AnchorRow, ...]:
        """The newest anchors, newest first."""
        rows = self._connection.execute("SELECT * FROM anchor ORDER BY log_size DESC LIMIT ?", (count,))
        return tuple(AnchorRow(*row) for row in rows)
