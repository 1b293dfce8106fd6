"""An RFC 6962 tree in SQLite: every complete subtree's hash is stored once, so proofs read O(log² n) rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from nsllm import merkle
from nsllm.governance.errors import LogError
from nsllm.ids import Digest
from nsllm.merkle import MAX_SIZE, Frontier, Node


class TreeStore:
    """Nodes of one tree in the table `<name>_node`; transactions are the caller's."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        """Make the table if it is missing.

        Args:
            connection: autocommit connection of the caller.
            name: prefix of the table; an identifier from our own code, never from outside.
        """
        self._connection = connection
        self._table = f"{name}_node"
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self._table} (level INTEGER NOT NULL, position INTEGER NOT NULL,"
            " hash BLOB NOT NULL, PRIMARY KEY (level, position)) WITHOUT ROWID"
        )

    def size(self) -> int:
        """Leaves of the tree, of which the first ones may be pruned: where its last peak ends."""
        query = f"SELECT max(position) FROM {self._table} WHERE level = ?"  # noqa: S608 - the name is ours
        ends: list[int] = [0]
        for level in range(MAX_SIZE.bit_length()):
            last: int | None = self._connection.execute(query, (level,)).fetchone()[0]
            if last is not None:
                ends.append((last + 1) << level)
        return max(ends)

    def begin(self, frontier: Frontier) -> None:
        """Make an empty store the right edge of a tree whose other nodes nobody here needs."""
        self._connection.executemany(
            f"INSERT INTO {self._table} (level, position, hash) VALUES (?, ?, ?)",  # noqa: S608
            [(*place, peak) for place, peak in zip(_peaks(frontier.size), frontier.peaks, strict=True)],
        )

    def prune(self, size: int) -> None:
        """Forget the nodes that only proofs of the first `size` leaves read: all below them but their peaks."""
        kept = dict(_peaks(size))
        for level in range(size.bit_length()):
            first = kept.get(level, size >> level)
            self._connection.execute(
                f"DELETE FROM {self._table} WHERE level = ? AND position < ?",  # noqa: S608
                (level, first),
            )

    def frontier(self) -> Frontier:
        """The tree's right edge, read from its O(log n) peaks."""
        size = self.size()
        return Frontier(size, tuple(self.node(level, position) for level, position in _peaks(size)))

    def extend(self, frontier: Frontier, leaves: Sequence[Digest]) -> Frontier:
        """Store `leaves` (leaf hashes) after `frontier`, which must be the stored tree's; returns the next one."""
        frontier, nodes = frontier.grow(leaves)
        self.put(nodes)
        return frontier

    def put(self, nodes: Sequence[Node]) -> None:
        """Store the nodes that `Frontier.grow` gave for the leaves after the stored tree's."""
        self._connection.executemany(
            f"INSERT INTO {self._table} (level, position, hash) VALUES (?, ?, ?)",  # noqa: S608
            nodes,
        )

    def node(self, level: int, position: int) -> Digest:
        """Hash of a complete subtree: the `NodeSource` of `nsllm.merkle`.

        Raises:
            LogError: not stored: the tree is shorter, or the file lost a row.
        """
        query = f"SELECT hash FROM {self._table} WHERE level = ? AND position = ?"  # noqa: S608
        row = self._connection.execute(query, (level, position)).fetchone()
        if row is None:
            raise LogError(f"{self._table} holds no node {position} at level {level}")
        return Digest(row[0])

    def root(self, size: int) -> Digest:
        """Root of the first `size` leaves."""
        return merkle.root_from(self.node, size)

    def inclusion(self, index: int, size: int) -> tuple[Digest, ...]:
        """Audit path of leaf `index` in the tree of the first `size` leaves."""
        return merkle.inclusion_path_from(self.node, index, size)

    def consistency(self, old_size: int, size: int) -> tuple[Digest, ...]:
        """Proof that the first `old_size` leaves are a prefix of the first `size`."""
        return merkle.consistency_path_from(self.node, old_size, size)


def _peaks(size: int) -> list[tuple[int, int]]:
    """Level and position of the peaks of a tree, largest first."""
    levels = [level for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1]
    return [(level, (size >> level) - 1) for level in levels]
