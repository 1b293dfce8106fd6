"""A simulated peer's disk as far as SQLite goes: databases in memory that outlive their connections.

Committed is stored: an image taken between two turns of the scheduler is what a killed process leaves behind.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path


class MemoryDatabases:
    """Implements `nsllm.databases.Databases`."""

    def __init__(self) -> None:
        self._images: dict[Path, bytes] = {}
        self._open: dict[Path, _Held] = {}

    def connect(self, path: Path, *, autocommit: bool) -> sqlite3.Connection:
        """See `Databases.connect`."""
        connection = sqlite3.connect(
            ":memory:", isolation_level=None if autocommit else "DEFERRED", check_same_thread=False, factory=_Held
        )
        image = self._images.get(path)
        if image is not None:
            connection.deserialize(image)
        connection.home = (self, path)
        self._open[path] = connection
        return connection

    def left(self) -> Mapping[Path, bytes]:
        """What is stored at this moment."""
        return {**self._images, **{path: connection.serialize() for path, connection in self._open.items()}}

    def restore(self, images: Mapping[Path, bytes]) -> None:
        """Go back to what `left` said; nothing is open."""
        self._images = dict(images)

    def closed(self, path: Path, connection: _Held) -> None:
        """A connection ends; what it committed stays."""
        if self._open.get(path) is connection:
            del self._open[path]
            self._images[path] = connection.serialize()

    def discard(self) -> None:
        """Nothing will be opened again."""
        self._open.clear()
        self._images.clear()


class _Held(sqlite3.Connection):
    home: tuple[MemoryDatabases, Path] | None = None

    def close(self) -> None:
        home, self.home = self.home, None
        if home is not None:
            if self.in_transaction:
                self.rollback()
            disk, path = home
            disk.closed(path, self)
        super().close()
