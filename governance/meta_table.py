"""Single values in a ledger's file, by name. Blocking; transactions are the caller's."""

from __future__ import annotations

import sqlite3


class MetaTable:
    """A part of `BlockStore`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """On tables that `BlockStore` has made."""
        self._connection = connection

    def get(self, name: str) -> bytes | None:
        """The value; None if there is none."""
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, name: str, value: bytes) -> None:
        """Keep a value in the place of the one before."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
