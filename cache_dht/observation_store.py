"""Observations on disk: the counters of `nsllm.cache_dht.observations` in a SQLite file of their own.

Losing it costs learning, nothing else: a damaged file is put aside, and learning begins again from the shipped prior.
"""

from __future__ import annotations

import logging
import sqlite3
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.observations import BINS, Place, Tally
from nsllm.ids import Address

log = logging.getLogger(__name__)

MOST_PLACES: Final = 50_000
"""Counters that are kept; beyond it those that changed longest ago go."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS counter (
    observer BLOB NOT NULL,
    place BLOB NOT NULL,
    counts BLOB NOT NULL,
    changed INTEGER NOT NULL,
    PRIMARY KEY (observer, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counter_by_change ON counter (changed);
"""
FORGET: Final = """
DELETE FROM counter WHERE changed <= (SELECT changed FROM counter ORDER BY changed LIMIT 1 OFFSET ?)
"""


class ObservationStore:
    """Counters by observer and place. Blocking; one call at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use `open` instead."""
        self._connection = connection

    @classmethod
    def open(cls, path: Path | None) -> ObservationStore:
        """Open or create the file at `path` (None: in memory).

        Raises:
            StoreError: the folder cannot be written.
        """
        try:
            return cls(_connect(path))
        except sqlite3.OperationalError as error:
            raise StoreError(f"cannot open observations {path}: {error}", hint="check space and modes") from None
        except sqlite3.DatabaseError as error:
            assert path is not None
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            log.error("observations_damaged aside=%s error=%s", aside, error)
            return cls(_connect(path))

    def load(self) -> Tally:
        """Everything that is kept; rows of another shape are left out."""
        tally = Tally()
        try:
            rows = self._connection.execute("SELECT observer, place, counts FROM counter").fetchall()
        except sqlite3.DatabaseError as error:
            log.error("observations_unreadable error=%s", error)
            return tally
        for observer, place, counts in rows:
            if len(counts) == 2 * BINS * 4:
                tally.counters[Address(observer), Place(place)] = list(array("I", counts))
        return tally

    def keep(self, observer: Address, counters: Iterable[tuple[Place, tuple[int, ...]]]) -> None:
        """Write counters that changed. Raises `StoreError`: disk trouble; nothing was kept."""
        try:
            with self._connection:
                row = self._connection.execute("SELECT coalesce(max(changed), 0), count(*) FROM counter").fetchone()
                for place, counts in counters:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO counter VALUES (?,?,?,?)",
                        (observer, place, array("I", counts).tobytes(), row[0] + 1),
                    )
                if row[1] > MOST_PLACES:
                    self._connection.execute(FORGET, (row[1] - MOST_PLACES,))
        except sqlite3.DatabaseError as error:
            raise StoreError(f"observations cannot be kept: {error}", hint="free some space") from None

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._connection.close()


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(SCHEMA)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
