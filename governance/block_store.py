"""Decided blocks and what is looked up in them: SQLite tables beside the network log's. Blocking; the caller's turn.

Transactions are the caller's: one a block.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from nsllm import canonical, merkle
from nsllm.consensus.attendance import Attendance
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import Inclusion
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.evidence import offence_of
from nsllm.consensus.observation import ScoreLeaf, Unscored
from nsllm.consensus.registry import RegistryState
from nsllm.errors import EncodingError
from nsllm.governance.block_schema import SCHEMA
from nsllm.governance.database import RECOVERY_HINT, in_parts
from nsllm.governance.errors import DamageError, StorageError
from nsllm.governance.genesis import Genesis
from nsllm.governance.light_client import EpochProof
from nsllm.governance.log_entry import (
    CertifiedEntry,
    Checkpoint,
    CheckpointEntry,
    EvidenceEntry,
    UnscoredEntry,
    decode_entry,
)
from nsllm.governance.network_log import NetworkLog
from nsllm.governance.offences import OffenceRow
from nsllm.governance.policy import Policy
from nsllm.governance.stored_block import from_stored, to_stored
from nsllm.ids import Address, Digest, Height, NetworkId, TimeMs
from nsllm.merkle import NodeSource

MAX_EPOCH_BYTES: Final = 64 * 1024
MAX_REGISTRY_BYTES: Final = 32 * 1024 * 1024
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


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch after the first."""

    boundary: Height
    """Height of the last block of the epoch before, whose header names this one."""
    change: EpochChange
    policy: Policy
    certificate: Certificate
    """Of the boundary's header: what stays of the epoch before."""

    @property
    def proof(self) -> EpochProof:
        """The handover to this epoch."""
        return EpochProof(certificate=self.certificate, change=self.change)


@dataclass(frozen=True, slots=True)
class AnchorRow:
    """One anchor of the network log."""

    log_size: int
    log_root: Digest
    header_height: Height
    """Height of the header that was anchored."""
    transaction_hash: Digest
    transaction_height: Height
    """Height of the block that carried the transaction."""
    time_ms: TimeMs
    proof_height: Height | None
    """Height of the header that certifies the state root with the anchor; None while there is none."""
    proof: bytes | None
    """Canonical `AnchorProof` against that state root."""


class BlockStore:
    """Blocks, scored records, members, checkpoints and anchors of one ledger file."""

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
        self._founding = genesis.registry().state
        self.log: Final = NetworkLog(connection)
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
                peer_row = (entry.signed.checkpoint.peer, header.time_ms, data)
                self._connection.execute("INSERT OR REPLACE INTO peer_checkpoint VALUES (?, ?, ?)", peer_row)
            elif isinstance(entry, EvidenceEntry):
                seen = offence_of(entry.evidence)
                offence_row = (seen.validator, seen.epoch, seen.kind, seen.height, header.height)
                self._connection.execute("INSERT INTO offence VALUES (?, ?, ?, ?, ?)", offence_row)

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
        value = self._meta("last_transaction_ms")
        return None if value is None else TimeMs(int.from_bytes(value, "big"))

    def put_last_transaction_ms(self, time_ms: TimeMs) -> None:
        """Keep the time of a block with transactions."""
        self._put_meta("last_transaction_ms", time_ms.to_bytes(8, "big"))

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

    def put_epoch(self, row: EpochRow) -> None:
        """Keep what begins after a boundary."""
        self._connection.execute(
            "INSERT INTO epoch VALUES (?, ?, ?, ?, ?)",
            (
                row.change.validators.epoch,
                row.boundary,
                canonical.encode(row.change),
                canonical.encode(row.policy),
                canonical.encode(row.certificate),
            ),
        )

    def epochs(self) -> tuple[EpochRow, ...]:
        """All epochs after the first, ascending.

        Raises:
            DamageError: not what was written.
        """
        found: list[EpochRow] = []
        for epoch, boundary, change, policy, proof in self._connection.execute("SELECT * FROM epoch ORDER BY epoch"):
            try:
                row = EpochRow(
                    Height(boundary),
                    canonical.decode(change, EpochChange, limit_bytes=MAX_EPOCH_BYTES),
                    canonical.decode(policy, Policy, limit_bytes=MAX_EPOCH_BYTES),
                    canonical.decode(proof, Certificate, limit_bytes=MAX_EPOCH_BYTES),
                )
            except EncodingError as error:
                raise DamageError(f"epoch {epoch}: {error.message}", hint=RECOVERY_HINT) from None
            if row.change.validators.epoch != epoch or epoch != len(found) + 1:
                raise DamageError(f"epoch {len(found) + 1} is missing", hint=RECOVERY_HINT)
            found.append(row)
        return tuple(found)

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

    def checkpoint_rows(self) -> Iterator[tuple[Address, TimeMs, bytes]]:
        """Each peer's newest checkpoint: peer, time of its block, log entry; ascending by peer."""
        return iter(self._connection.execute("SELECT peer, time_ms, data FROM peer_checkpoint ORDER BY peer"))

    def put_registry(self, registry: RegistryState, before: RegistryState | None = None) -> None:
        """Keep the members after the newest block.

        Attendance changes every minute and stands apart: all members are written only if something about them changed.

        Args:
            registry: after the block.
            before: what is kept now; None: nothing that counts.
        """
        if before is None or registry.with_attendance(before.attendance) != before:
            self._put_meta("registry", canonical.encode(registry.with_attendance(Attendance())))
        self._put_meta("attendance", canonical.encode(registry.attendance))

    def registry(self) -> RegistryState:
        """Members after the newest block.

        Raises:
            DamageError: not what was written.
        """
        members, attendance = self._meta("registry"), self._meta("attendance")
        try:
            found = self._founding
            if members is not None:
                found = canonical.decode(members, RegistryState, limit_bytes=MAX_REGISTRY_BYTES)
            if attendance is not None:
                shown = canonical.decode(attendance, Attendance, limit_bytes=MAX_EPOCH_BYTES)
                found = found.with_attendance(shown)
        except EncodingError as error:
            raise DamageError(f"member registry: {error.message}", hint=RECOVERY_HINT) from None
        return found

    def offences(self) -> list[OffenceRow]:
        """Every conviction, oldest first."""
        query = "SELECT validator, epoch, kind, offence_height, height FROM offence ORDER BY height, validator"
        return [OffenceRow(*row) for row in self._connection.execute(query)]

    def last_checkpoint(self, peer: Address) -> tuple[Checkpoint, TimeMs] | None:
        """The peer's newest checkpoint, and the time of its block."""
        row = self._connection.execute("SELECT time_ms, data FROM peer_checkpoint WHERE peer = ?", (peer,)).fetchone()
        if row is None:
            return None
        entry = decode_entry(row[1])
        return (entry.signed.checkpoint, TimeMs(row[0])) if isinstance(entry, CheckpointEntry) else None

    def put_anchor(self, anchor: AnchorRow) -> None:
        """Store an executed anchor, not yet certified."""
        self._connection.execute(
            "INSERT INTO anchor VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                anchor.log_size,
                anchor.log_root,
                anchor.header_height,
                anchor.transaction_hash,
                anchor.transaction_height,
                anchor.time_ms,
                anchor.proof_height,
                anchor.proof,
            ),
        )

    def unproved_anchors(self) -> list[int]:
        """Log sizes that are anchored and whose state root no header has certified yet."""
        rows = self._connection.execute("SELECT log_size FROM anchor WHERE proof IS NULL ORDER BY log_size")
        return [row[0] for row in rows]

    def prove_anchor(self, log_size: int, height: Height, proof: bytes) -> None:
        """Keep the proof of an anchor against the state root that the header at `height` certifies."""
        self._connection.execute(
            "UPDATE anchor SET proof_height = ?, proof = ? WHERE log_size = ?", (height, proof, log_size)
        )

    def anchor_covering(self, log_size: int) -> AnchorRow | None:
        """The first proved anchor of a log of at least `log_size` entries."""
        query = "SELECT * FROM anchor WHERE log_size >= ? AND proof IS NOT NULL ORDER BY log_size LIMIT 1"
        row = self._connection.execute(query, (log_size,)).fetchone()
        return None if row is None else AnchorRow(*row)

    def newest_anchored(self) -> Height:
        """Height of the header of the newest proved anchor; 0 before the first."""
        row = self._connection.execute("SELECT max(header_height) FROM anchor WHERE proof IS NOT NULL").fetchone()
        return Height(row[0] or 0)

    def anchors(self, count: int) -> tuple[AnchorRow, ...]:
        """The newest anchors, newest first."""
        rows = self._connection.execute("SELECT * FROM anchor ORDER BY log_size DESC LIMIT ?", (count,))
        return tuple(AnchorRow(*row) for row in rows)

    def _meta(self, name: str) -> bytes | None:
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def _put_meta(self, name: str, value: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _remember(read: dict[Height, R], height: Height, value: R) -> None:
    read[height] = value
    if len(read) > REMEMBERED:
        del read[next(iter(read))]
