"""The network log in SQLite: entries in order, and the RFC 6962 tree over them. Transactions are the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from nsllm import merkle
from nsllm.consensus.certified import Inclusion
from nsllm.governance.tree_store import TreeStore
from nsllm.ids import Digest, Height
from nsllm.merkle import Frontier, Node


class NetworkLog:
    """Append-only list of canonical entries; what it proves holds under the header's `log_root`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._tree = TreeStore(connection, "network_log")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS network_log_entry"
            " (position INTEGER PRIMARY KEY, height INTEGER NOT NULL, data BLOB NOT NULL)"
        )

    def frontier(self) -> Frontier:
        """Size and right edge of the log."""
        return self._tree.frontier()

    def append(self, frontier: Frontier, height: Height, entries: Sequence[bytes]) -> Frontier:
        """Append a block's entries after `frontier`, the log's present one; returns the next."""
        grown, nodes = frontier.grow([merkle.leaf_hash(entry) for entry in entries])
        self.append_grown(frontier.size, height, entries, nodes)
        return grown

    def append_grown(self, size: int, height: Height, entries: Sequence[bytes], nodes: Sequence[Node]) -> None:
        """Append a block's entries after the first `size`, where the nodes that they complete are known."""
        self._connection.executemany(
            "INSERT INTO network_log_entry (position, height, data) VALUES (?, ?, ?)",
            [(size + i, height, entry) for i, entry in enumerate(entries)],
        )
        self._tree.put(nodes)

    def begin(self, frontier: Frontier) -> None:
        """Begin an empty log in the middle: what is appended from here on can be proved, what is before cannot."""
        self._tree.begin(frontier)

    def prune(self, size: int) -> None:
        """Forget the first `size` entries: the later ones can be proved as before."""
        self._connection.execute("DELETE FROM network_log_entry WHERE position < ?", (size,))
        self._tree.prune(size)

    def entries(self, start: int, count: int) -> list[bytes]:
        """At most `count` entries from index `start`."""
        query = "SELECT data FROM network_log_entry WHERE position >= ? AND position < ? ORDER BY position"
        return [row[0] for row in self._connection.execute(query, (start, start + count))]

    def inclusion(self, index: int, size: int) -> Inclusion:
        """Proof of entry `index` in the log's first `size` entries."""
        return Inclusion(index=index, size=size, path=self._tree.inclusion(index, size))

    def consistency(self, old_size: int, size: int) -> tuple[Digest, ...]:
        """Proof that the log of `old_size` entries is a prefix of that of `size`."""
        return self._tree.consistency(old_size, size)
