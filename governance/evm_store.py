"""py-evm's key-value store in a table of somebody else's SQLite file.

The ledger keeps blocks, log and EVM state in one file and commits a block as one transaction. So this store joins a
transaction that is open on the connection and leaves its end to whoever began it; only where none is open does a batch
make its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

from eth.abc import AtomicWriteBatchAPI
from eth.db.atomic import AtomicDBWriteBatch
from eth.db.backends.base import BaseAtomicDB
from eth.db.diff import DBDiff

from nsllm.governance.database import atomic
from nsllm.governance.errors import ChainError


class SqliteStore(BaseAtomicDB):  # type: ignore[misc] # py-evm is untyped to mypy
    """`AtomicDatabaseAPI` over the table `evm` of a given connection; the caller closes the connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Make the table if it is missing.

        Args:
            connection: in autocommit mode, because implicit transactions would never be committed by anybody.

        Raises:
            ChainError: another mode.
        """
        if connection.isolation_level is not None:
            raise ChainError(
                "the EVM store needs an autocommit connection", hint="sqlite3.connect(isolation_level=None)"
            )
        self._connection = connection
        connection.execute("CREATE TABLE IF NOT EXISTS evm (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def __getitem__(self, key: bytes) -> bytes:
        row = self._connection.execute("SELECT value FROM evm WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        value: bytes = row[0]
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO evm (key, value) VALUES (?, ?)", (key, value))

    def write(self, changes: DBDiff) -> None:
        """Write many values at once, and forget what they replace."""
        written: list[tuple[bytes, bytes]] = list(changes.pending_items())
        self._connection.executemany("INSERT OR REPLACE INTO evm (key, value) VALUES (?, ?)", written)
        gone = [(key,) for key in changes.deleted_keys()]
        if gone:
            self._connection.executemany("DELETE FROM evm WHERE key = ?", gone)

    def __delitem__(self, key: bytes) -> None:
        if self._connection.execute("DELETE FROM evm WHERE key = ?", (key,)).rowcount == 0:
            raise KeyError(key)

    def _exists(self, key: bytes) -> bool:
        return self._connection.execute("SELECT 1 FROM evm WHERE key = ?", (key,)).fetchone() is not None

    def keep_only(self, keys: AbstractSet[bytes]) -> int:
        """Delete all rows but these; returns how many went."""
        present = [row[0] for row in self._connection.execute("SELECT key FROM evm")]
        gone = [(key,) for key in present if key not in keys]
        self._connection.executemany("DELETE FROM evm WHERE key = ?", gone)
        return len(gone)

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All or nothing: part of the open transaction, or one of its own."""
        if self._connection.in_transaction:
            yield
            return
        with atomic(self._connection):
            yield

    @contextmanager
    def atomic_batch(self) -> Generator[AtomicWriteBatchAPI]:
        """py-evm's unit of writing: written at the end, or not at all."""
        # As py-evm's own stores do: its one way to buffer writes.
        buffered = AtomicDBWriteBatch._commit_unless_raises(self)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        with self.transaction(), buffered as batch:
            yield batch
