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
"""Counters that are kept of this peer's own, and of all others' together; of more those that changed longest ago go."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS counter (
    observer BLOB NOT NULL,
    place BLOB NOT NULL,
    counts BLOB NOT NULL,
    own INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    PRIMARY KEY (observer, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counter_by_change ON counter (own, changed);
"""
FORGET: Final = """
DELETE FROM counter WHERE own=?1 AND changed <=
    (SELECT changed FROM counter WHERE own=?1 ORDER BY changed DESC LIMIT 1 OFFSET ?2)
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
                tally.counter(Address(observer), Place(place))[:] = array("I", counts)
        return tally

    def keep(self, observer: Address, counters: Iterable[tuple[Place, tuple[int, ...]]], *, own: bool = True) -> None:
        """Write counters that changed.

        Args:
            observer: whose.
            counters: as they are now.
            own: this peer's; others' never take their room.

        Raises:
            StoreError: disk trouble; nothing was kept.
        """
        try:
            with self._connection:
                last = self._connection.execute("SELECT coalesce(max(changed), 0) FROM counter").fetchone()[0]
                for place, counts in counters:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO counter VALUES (?,?,?,?,?)",
                        (observer, place, array("I", counts).tobytes(), own, last + 1),
                    )
                self._connection.execute(FORGET, (own, MOST_PLACES))
        except sqlite3.DatabaseError as error:
            raise StoreError(f"observations cannot be kept: {error}", hint="free some space") from None

    def since(self, observer: Address, changed: int, most: int) -> tuple[tuple[Place, tuple[int, ...], int], ...]:
        """At most `most` counters of one observer that changed after `changed`, in that order, with their change.

        Raises:
            StoreError: disk trouble.
        """
        sql = (
            "SELECT place, counts, changed FROM counter WHERE observer=? AND changed>? ORDER BY changed, place LIMIT ?"
        )
        try:
            rows = self._connection.execute(sql, (observer, changed, most)).fetchall()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"observations cannot be read: {error}", hint="restart the peer") from None
        return tuple(
            (Place(place), tuple(array("I", counts)), change)
            for place, counts, change in rows
            if len(counts) == 2 * BINS * 4
        )

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
