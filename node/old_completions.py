"""Which completions a peer forgets: finished ones, old or too many, with the records that nothing else needs."""

from __future__ import annotations

import sqlite3
from typing import Final

from nsllm.ids import TimeMs

FORGOTTEN_AT_ONCE: Final = 500
"""In one transaction: others wait for it."""
YOUNG_MS: Final = 3_600_000
"""However many there are, none is forgotten in its first hour: its receipt is not anchored yet, or not fetched."""
OLD: Final = """
SELECT id, record FROM completion WHERE state IN ('certified', 'none') AND created_ms < ?
ORDER BY created_ms, id LIMIT ?
"""
SURPLUS: Final = "SELECT count(*) FROM completion WHERE state IN ('certified', 'none')"
UNUSED: Final = "DELETE FROM {table} WHERE {column} = ? AND NOT EXISTS (SELECT 1 FROM completion WHERE record = ?)"


def forget(connection: sqlite3.Connection, now_ms: TimeMs, *, keep: int, keep_ms: int) -> int:
    """Delete at most `FORGOTTEN_AT_ONCE` finished completions, the oldest first; how many went.

    Whatever still waits for its certificate stays, and so does a record that another completion stands on. The
    transaction is the caller's.

    Args:
        connection: of the completions' database.
        now_ms: wall time.
        keep: how many finished ones may stay; 0: any number.
        keep_ms: how long they stay; 0: for ever.
    """
    rows: list[tuple[str, bytes | None]] = []
    if keep_ms:
        rows = connection.execute(OLD, (now_ms - max(YOUNG_MS, keep_ms), FORGOTTEN_AT_ONCE)).fetchall()
    if keep:
        surplus = connection.execute(SURPLUS).fetchone()[0] - keep
        if surplus > len(rows):
            rows = connection.execute(OLD, (now_ms - YOUNG_MS, min(surplus, FORGOTTEN_AT_ONCE))).fetchall()
    connection.executemany("DELETE FROM completion WHERE id = ?", [(name,) for name, _ in rows])
    digests = [(digest, digest) for digest in dict.fromkeys(record for _, record in rows) if digest is not None]
    for table, column in (("record", "digest"), ("scores", "record")):
        connection.executemany(UNUSED.format(table=table, column=column), digests)
    return len(rows)
