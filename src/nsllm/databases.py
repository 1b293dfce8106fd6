"""The Databases port: where SQLite files are. On disk; a simulation of many peers keeps them in memory."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, Protocol

BUSY_S: Final = 5.0
"""How long a connection waits for a lock of another, such as a backup's."""


class Databases(Protocol):
    """Opens SQLite databases by path."""

    def connect(self, path: Path, *, autocommit: bool) -> sqlite3.Connection:
        """A connection to the database at `path`, new or as it was left; usable from any thread, one at a time.

        Args:
            path: its file; the folder exists.
            autocommit: transactions are explicit; False begins them implicitly, as Python's default is.
        """
        ...


class DiskDatabases:
    """Files."""

    def connect(self, path: Path, *, autocommit: bool) -> sqlite3.Connection:
        """See `Databases.connect`."""
        return connect(str(path), autocommit=autocommit)


def connect(name: str, *, autocommit: bool) -> sqlite3.Connection:
    """A connection to a file, or to a new database in memory under the name `:memory:`."""
    return sqlite3.connect(
        name, isolation_level=None if autocommit else "DEFERRED", check_same_thread=False, timeout=BUSY_S
    )


ON_DISK: Final = DiskDatabases()
"""The default."""
