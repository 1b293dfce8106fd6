"""Waiting motions in the ledger's file: what was acknowledged survives any crash, until a block decides or it expires.

A part of `LedgerState`. No part of the replicated state: each validator keeps what it has heard. Blocking.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

from nsllm import canonical
from nsllm.errors import EncodingError
from nsllm.governance.database import RECOVERY_HINT
from nsllm.governance.errors import DamageError
from nsllm.governance.motion import GovernanceTransaction
from nsllm.ids import Address, Digest, NetworkId, TimeMs

MAX_MOTION_BYTES: Final = 128 * 1024
"""A policy, and the approvals of as many validators as there may be."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS waiting_motion (
    digest BLOB PRIMARY KEY,
    proposer BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    data BLOB NOT NULL
);
"""


class MotionStore:
    """Motions by digest, each with the approvals that came so far. Transactions are the caller's."""

    def __init__(self, connection: sqlite3.Connection, network: NetworkId) -> None:
        """Make the table if it is missing."""
        self._connection = connection
        self._network = network
        connection.executescript(SCHEMA)

    def put(self, transaction: GovernanceTransaction, time_ms: TimeMs) -> None:
        """Keep a motion with its approvals in place of what was kept of it; forget those that expired."""
        motion = transaction.motion
        self._connection.execute("DELETE FROM waiting_motion WHERE expires_ms <= ?", (time_ms,))
        # Not `INSERT OR REPLACE`: that would make it the newest.
        self._connection.execute(
            "INSERT INTO waiting_motion VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET data = excluded.data",
            (motion.digest(self._network), motion.proposer, motion.expires_ms, canonical.encode(transaction)),
        )

    def forget(self, decided: Iterable[Digest]) -> None:
        """A block holds these."""
        self._connection.executemany("DELETE FROM waiting_motion WHERE digest = ?", [(each,) for each in decided])

    def keep_of(self, validators: Iterable[Address]) -> None:
        """Another epoch begins: motions of those who validate no more are void."""
        kept = set(validators)
        found = self._connection.execute("SELECT DISTINCT proposer FROM waiting_motion").fetchall()
        gone = [(proposer,) for (proposer,) in found if proposer not in kept]
        self._connection.executemany("DELETE FROM waiting_motion WHERE proposer = ?", gone)

    def all(self) -> list[GovernanceTransaction]:
        """What is kept, oldest first.

        Raises:
            DamageError: not what was written.
        """
        rows = self._connection.execute("SELECT data FROM waiting_motion ORDER BY rowid").fetchall()
        try:
            return [canonical.decode(data, GovernanceTransaction, limit_bytes=MAX_MOTION_BYTES) for (data,) in rows]
        except EncodingError as error:
            raise DamageError(f"waiting motion: {error.message}", hint=RECOVERY_HINT) from None
