"""The network log in SQLite agrees with the plain tree over the same leaves, at every size."""

from __future__ import annotations

import sqlite3

import pytest

from nsllm import merkle
from nsllm.governance.errors import LogError
from nsllm.governance.network_log import NetworkLog
from nsllm.ids import Height
from nsllm.merkle import Frontier


@pytest.fixture
def connection():
    with sqlite3.connect(":memory:", isolation_level=None) as connection:
        yield connection


def test_proofs_out_of_stored_nodes_hold(connection) -> None:
    log, frontier = NetworkLog(connection), Frontier()
    entries = [b"entry %d" % i for i in range(21)]
    roots = {0: frontier.root()}
    for at in range(0, 21, 3):
        frontier = log.append(frontier, Height(at + 1), entries[at : at + 3])
        roots[frontier.size] = frontier.root()
    assert log.frontier() == frontier
    assert log.entries(4, 3) == entries[4:7]
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    for size, root in roots.items():
        assert root == merkle.root(hashes[:size])
        for index in range(size):
            inclusion = log.inclusion(index, size)
            merkle.verify_inclusion(hashes[index], inclusion.index, inclusion.size, inclusion.path, root)
        if size:
            merkle.verify_consistency(size, 21, log.consistency(size, 21), root, roots[21])


def test_a_proof_reads_few_rows_of_a_large_log(connection) -> None:
    log = NetworkLog(connection)
    log.append(Frontier(), Height(1), [b"%d" % i for i in range(5000)])
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    log.inclusion(1234, 4999)
    log.frontier()
    assert len(statements) < 13 * 13


def test_the_past_cannot_be_written_again(connection) -> None:
    log = NetworkLog(connection)
    log.append(Frontier(), Height(1), [b"a", b"b"])
    with pytest.raises(sqlite3.IntegrityError):
        log.append(Frontier(), Height(2), [b"c"])
    connection.execute("DELETE FROM network_log_node WHERE level = 0")
    with pytest.raises(LogError, match="holds no node 0 at level 0"):
        log.inclusion(1, 2)
