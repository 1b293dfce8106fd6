"""Decided blocks and what is looked up in them: SQLite tables beside the network log's. Blocking; the caller's turn.

Transactions are the caller's: one a block.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from nsllm import canonical, merkle
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certified import Inclusion
from nsllm.consensus.observation import ScoreLeaf, Unscored
from nsllm.errors import EncodingError
from nsllm.governance.anchor_store import AnchorStore
from nsllm.governance.block_schema import SCHEMA
from nsllm.governance.database import RECOVERY_HINT, in_parts
from nsllm.governance.epoch_store import EpochStore
from nsllm.governance.errors import DamageError, StorageError
from nsllm.governance.genesis import Genesis
from nsllm.governance.log_entry import (
    CertifiedEntry,
    CheckpointEntry,
    EvidenceEntry,
    UnscoredEntry,
    decode_entry,
)
from nsllm.governance.member_store import MemberStore
from nsllm.governance.meta_table import MetaTable
from nsllm.governance.network_log import NetworkLog
from nsllm.governance.stored_block import from_stored, to_stored
from nsllm.ids import Digest, Height, NetworkId, TimeMs
from nsllm.merkle import NodeSource

REMEMBERED: Final = 8
"""Blocks that were read last; none is larger than 1 MiB."""
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One decided block in short."""

    height: Height
    header_id: Digest
    time_ms: TimeMs
    round: int
    signers: int
    records: int
    transactions: int
    log_start: int
    """Log size before the block."""
    log_size: int


class BlockStore:
    """Blocks of one ledger file, what they settled and the motions that they decided; the rest is in its parts."""

    def __init__(self, connection: sqlite3.Connection, genesis: Genesis) -> None:
        """Make missing tables.

        Raises:
            StorageError: the file is another network's.
        """
        self._connection = connection
        connection.executescript(SCHEMA)
        network = genesis.network_id()
        connection.execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('network', ?)", (network,))
        stored = NetworkId(connection.execute("SELECT value FROM meta WHERE name = 'network'").fetchone()[0])
        if stored != network:
            raise StorageError(
                f"the ledger is of network {stored.hex()[:16]}, the genesis of {network.hex()[:16]}",
                hint="use the genesis that this data folder was made with, or another data folder",
            )
        self._meta = MetaTable(connection)
        self.log: Final = NetworkLog(connection)
        self.members: Final = MemberStore(connection, self._meta, genesis.registry().state)
        self.epochs: Final = EpochStore(connection)
        self.anchors: Final = AnchorStore(connection)
        self._read_blocks: dict[Height, DecidedBlock] = {}
        self._read_leaves: dict[Height, tuple[ScoreLeaf, ...]] = {}
        self._read_trees: dict[Height, NodeSource] = {}

    def put(
        self, decided: DecidedBlock, leaves: Sequence[ScoreLeaf], unscored: Sequence[Unscored], log_start: int
    ) -> None:
        """Store a block and what it decided; its log entries are appended apart."""
        header = decided.block.header
        self.put_block(decided, leaves, unscored, log_start)
        settled = (*(leaf.record for leaf in leaves), *(each.record for each in unscored))
        self.put_settled((record, header.time_ms) for record in settled)
        for data in decided.block.body.entries:
            entry = decode_entry(data)
            if isinstance(entry, CheckpointEntry):
                self.members.put_checkpoint(entry.signed.checkpoint.peer, header.time_ms, data)
            elif isinstance(entry, EvidenceEntry):
                self.members.put_offence(entry.evidence, header.height)

    def put_block(
        self, decided: DecidedBlock, leaves: Sequence[ScoreLeaf], unscored: Sequence[Unscored], log_start: int
    ) -> None:
        """Store a block and where its records are; of a record that was settled twice, the last place counts."""
        header, certificate = decided.block.header, decided.certificate
        self._connection.execute(
            "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                header.height,
                header.id(),
                header.time_ms,
                certificate.round,
                len(certificate.precommits),
                len(leaves),
                len(decided.block.body.transactions),
                log_start,
                header.log_size,
                to_stored(decided),
            ),
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO scored VALUES (?, ?, ?)",
            [(leaf.record, header.height, i) for i, leaf in enumerate(leaves)],
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO unscored VALUES (?, ?, ?)",
            [(each.record, header.height, i) for i, each in enumerate(unscored, start=len(leaves))],
        )

    def put_settled(self, rows: Iterable[tuple[Digest, TimeMs]]) -> None:
        """Records that may not be settled again for now, in order, with the time of their block."""
        self._connection.executemany("INSERT INTO settled (record, time_ms) VALUES (?, ?)", rows)

    def settled(self) -> Iterator[tuple[Digest, TimeMs]]:
        """All of them, in order."""
        rows = self._connection.execute("SELECT record, time_ms FROM settled ORDER BY position")
        return ((Digest(record), TimeMs(time_ms)) for record, time_ms in rows)

    def forget_settled(self, time_ms: TimeMs) -> None:
        """Forget those of blocks up to `time_ms`."""
        self._connection.execute("DELETE FROM settled WHERE time_ms <= ?", (time_ms,))

    def kept_from(self) -> Height:
        """Height of the oldest stored block; 1 before the first."""
        row = self._connection.execute("SELECT min(height) FROM block").fetchone()
        return Height(1 if row[0] is None else row[0])

    def prune(self, up_to: Height) -> None:
        """Forget the blocks up to a height, and what is looked up in them."""
        log_size = self.row(up_to).log_size
        for table in ("block", "scored", "unscored"):
            self._connection.execute(f"DELETE FROM {table} WHERE height <= ?", (up_to,))  # noqa: S608 - our own names
        self._connection.execute("DELETE FROM anchor WHERE header_height <= ?", (up_to,))
        self.log.prune(log_size)
        self._read_blocks.clear()
        self._read_leaves.clear()
        self._read_trees.clear()

    def tip(self) -> DecidedBlock | None:
        """The last block."""
        row = self._connection.execute("SELECT max(height) FROM block").fetchone()
        return None if row[0] is None else self.block(Height(row[0]))

    def block(self, height: Height) -> DecidedBlock | None:
        """The decided block at `height`; the last ones are remembered, since proofs of a block come together."""
        if height not in self._read_blocks:
            found = self.blocks(height, 1)
            if not found:
                return None
            _remember(self._read_blocks, height, found[0])
        return self._read_blocks[height]

    def remember(self, decided: DecidedBlock) -> None:
        """A block that is stored by now: whoever follows asks for the newest ones."""
        _remember(self._read_blocks, decided.block.header.height, decided)

    def blocks(self, start: Height, count: int) -> list[DecidedBlock]:
        """At most `count` decided blocks from `start`, ascending.

        Raises:
            DamageError: a stored block is not what was written.
        """
        query = "SELECT height, header_id, decided FROM block WHERE height >= ? AND height < ? ORDER BY height"
        found: list[DecidedBlock] = []
        while len(found) < count and (known := self._read_blocks.get(Height(start + len(found)))) is not None:
            found.append(known)
        if len(found) == count:
            return found
        for height, header_id, data in self._connection.execute(query, (start + len(found), start + count)):
            try:
                decided = from_stored(data)
            except EncodingError:
                decided = None
            if decided is None or decided.block.header.id() != header_id:
                raise DamageError(f"stored block {height} is damaged", hint=RECOVERY_HINT)
            found.append(decided)
        return found

    def rows(self, count: int) -> tuple[BlockRow, ...]:
        """The newest blocks in short, newest first."""
        query = (
            "SELECT height, header_id, time_ms, round, signers, records, transactions, log_start, log_size"
            " FROM block ORDER BY height DESC LIMIT ?"
        )
        return tuple(BlockRow(*row) for row in self._connection.execute(query, (count,)))

    def row(self, height: Height) -> BlockRow:
        """One stored block in short."""
        query = (
            "SELECT height, header_id, time_ms, round, signers, records, transactions, log_start, log_size"
            " FROM block WHERE height = ?"
        )
        row = self._connection.execute(query, (height,)).fetchone()
        if row is None:
            raise DamageError(f"block {height} is missing", hint=RECOVERY_HINT)
        return BlockRow(*row)

    def last_transaction_ms(self) -> TimeMs | None:
        """Time of the newest block with transactions."""
        value = self._meta.get("last_transaction_ms")
        return None if value is None else TimeMs(int.from_bytes(value, "big"))

    def put_last_transaction_ms(self, time_ms: TimeMs) -> None:
        """Keep the time of a block with transactions."""
        self._meta.put("last_transaction_ms", time_ms.to_bytes(8, "big"))

    def settled_among(self, records: Sequence[Digest]) -> set[Digest]:
        """Those that a block of the last `block_rules.SETTLED_MS` has scored, or settled that they stay unscored."""
        found: set[Digest] = set()
        for places, part in in_parts(records):
            query = f"SELECT record FROM settled WHERE record IN ({places})"  # noqa: S608 - question marks
            found.update(Digest(row[0]) for row in self._connection.execute(query, part))
        return found

    def unscored(self, record: Digest) -> Unscored | None:
        """Why a record stays unscored; None if it does not."""
        row = self._connection.execute("SELECT height, position FROM unscored WHERE record = ?", (record,)).fetchone()
        if row is None:
            return None
        [data] = self.log.entries(self.row(Height(row[0])).log_start + row[1], 1)
        entry = decode_entry(data)
        return entry.unscored if isinstance(entry, UnscoredEntry) else None

    def location(self, record: Digest) -> tuple[Height, int] | None:
        """Height and position among that block's scores."""
        row = self._connection.execute("SELECT height, position FROM scored WHERE record = ?", (record,)).fetchone()
        return None if row is None else (Height(row[0]), row[1])

    def recent_records(self, count: int) -> list[Digest]:
        """The records settled last, oldest first."""
        rows = self._connection.execute("SELECT record FROM settled ORDER BY position DESC LIMIT ?", (count,))
        return [Digest(row[0]) for row in rows][::-1]

    def leaves(self, height: Height) -> tuple[ScoreLeaf, ...]:
        """A block's score leaves in body order; remembered as blocks are."""
        if height not in self._read_leaves:
            row = self.row(height)
            entries = (decode_entry(data) for data in self.log.entries(row.log_start, row.records))
            leaves = tuple(entry.leaf for entry in entries if isinstance(entry, CertifiedEntry))
            _remember(self._read_leaves, height, leaves)
        return self._read_leaves[height]

    def score_inclusion(self, height: Height, position: int) -> Inclusion:
        """Proof of a score leaf in the block's `scores_root`; the tree is remembered too."""
        leaves = self.leaves(height)
        if height not in self._read_trees:
            hashes = [merkle.leaf_hash(canonical.encode(leaf)) for leaf in leaves]
            _remember(self._read_trees, height, merkle.complete_nodes(hashes))
        path = merkle.inclusion_path_from(self._read_trees[height], position, len(leaves))
        return Inclusion(index=position, size=len(leaves), path=path)

    def put_motions(self, motions: Sequence[tuple[Digest, TimeMs]], height: Height, time_ms: TimeMs) -> None:
        """Remember decided motions (digest and expiry) until they expire; forget those that have by `time_ms`."""
        self._connection.execute("DELETE FROM motion WHERE expires_ms <= ?", (time_ms,))
        self._connection.executemany(
            "INSERT INTO motion VALUES (?, ?, ?)", [(digest, height, expires) for digest, expires in motions]
        )

    def is_decided(self, motion: Digest) -> bool:
        """Does a block hold this motion, which has not expired?"""
        row = self._connection.execute("SELECT 1 FROM motion WHERE digest = ?", (motion,)).fetchone()
        return row is not None

    def decided_motions(self) -> list[tuple[Digest, Height]]:
        """Decided motions that have not expired, in order of height."""
        return [(digest, height) for digest, height, _ in self.motion_rows()]

    def motion_rows(self) -> list[tuple[Digest, Height, TimeMs]]:
        """Decided motions that have not expired, in order of height, with their expiry."""
        rows = self._connection.execute("SELECT digest, height, expires_ms FROM motion ORDER BY height, digest")
        return [(Digest(digest), Height(height), TimeMs(expires)) for digest, height, expires in rows]


def _remember(read: dict[Height, R], height: Height, value: R) -> None:
    read[height] = value
    if len(read) > REMEMBERED:
        del read[next(iter(read))]
