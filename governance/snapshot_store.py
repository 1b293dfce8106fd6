"""Snapshots in a ledger's file: written down after a block, handed out chunk by chunk, taken in from others.

What comes in stands apart until all of it is there and the state is replaced in one transaction. Blocking; transactions
are the caller's.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from typing import Final, assert_never

from nsllm import canonical
from nsllm.consensus.header import Header
from nsllm.consensus.registry import RegistryState
from nsllm.crypto import keccak256
from nsllm.errors import EncodingError
from nsllm.governance.block_store import BlockStore
from nsllm.governance.chain import EmbeddedChain
from nsllm.governance.database import RECOVERY_HINT
from nsllm.governance.errors import DamageError, SnapshotError
from nsllm.governance.member_store import MAX_REGISTRY_BYTES
from nsllm.governance.snapshot import (
    SETTLED_BYTES,
    AnyPart,
    CheckpointsPart,
    Conviction,
    DecidedMotion,
    EvmHeadPart,
    EvmPart,
    LogPart,
    Manifest,
    MotionsPart,
    NamedValue,
    OffencesPart,
    PeerCheckpoint,
    RegistryPart,
    SettledPart,
    chunks_of,
    decode_chunk,
    grouped,
    pack_settled,
    pieces,
    unpack_settled,
)
from nsllm.ids import Digest, Height, NetworkId, TimeMs, hex0x
from nsllm.merkle import Frontier

KEPT: Final = 2
"""Snapshots that are handed out: the newest one, and the one before for those who are in the middle of it."""
MAX_MANIFEST_BYTES: Final = 2 * 1024 * 1024
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS snapshot (height INTEGER PRIMARY KEY, digest BLOB NOT NULL, manifest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshot_chunk (
    height INTEGER NOT NULL,
    position INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (height, position)
);
CREATE TABLE IF NOT EXISTS incoming_chunk (position INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""
STATE_TABLES: Final = (
    "block", "scored", "unscored", "settled", "motion", "peer_checkpoint", "offence", "anchor",
    "network_log_entry", "network_log_node", "evm", "snapshot", "snapshot_chunk",
)  # fmt: skip
"""What a snapshot takes the place of."""


class SnapshotStore:
    """The tables of snapshots in one ledger file."""

    def __init__(self, connection: sqlite3.Connection, network: NetworkId) -> None:
        """Make missing tables."""
        self._connection = connection
        self._network = network
        connection.executescript(SCHEMA)

    def take(
        self, header: Header, log_before: Frontier, registry: RegistryState, store: BlockStore, chain: EmbeddedChain
    ) -> Digest:
        """Write down the state after a block; returns the manifest's digest.

        Args:
            header: the block's.
            log_before: the network log below the block.
            registry: members after it.
            store: has stored the block.
            chain: has executed it.
        """
        digests: list[bytes] = []
        size_bytes = 0
        for position, data in enumerate(chunks_of(_parts(log_before, registry, store, chain))):
            digests.append(hashlib.sha256(data).digest())
            size_bytes += len(data)
            self._connection.execute("INSERT INTO snapshot_chunk VALUES (?, ?, ?)", (header.height, position, data))
        manifest = Manifest(
            height=header.height, header_id=header.id(), size_bytes=size_bytes, chunks=b"".join(digests)
        )
        digest = manifest.digest(self._network)
        row = (header.height, digest, canonical.encode(manifest))
        self._connection.execute("INSERT INTO snapshot VALUES (?, ?, ?)", row)
        floor = self._connection.execute(
            "SELECT height FROM snapshot ORDER BY height DESC LIMIT 1 OFFSET ?", (KEPT,)
        ).fetchone()
        if floor is not None:
            self._connection.execute("DELETE FROM snapshot WHERE height <= ?", floor)
            self._connection.execute("DELETE FROM snapshot_chunk WHERE height <= ?", floor)
        return digest

    def manifests(self) -> list[Manifest]:
        """Of the snapshots that are handed out, newest first.

        Raises:
            DamageError: not what was written.
        """
        rows = self._connection.execute("SELECT manifest FROM snapshot ORDER BY height DESC").fetchall()
        try:
            return [canonical.decode(row[0], Manifest, limit_bytes=MAX_MANIFEST_BYTES) for row in rows]
        except EncodingError as error:
            raise DamageError(f"snapshot: {error.message}", hint=RECOVERY_HINT) from None

    def digest_at(self, height: Height) -> Digest | None:
        """Digest of the snapshot of a block; None if there is none."""
        row = self._connection.execute("SELECT digest FROM snapshot WHERE height = ?", (height,)).fetchone()
        return None if row is None else Digest(row[0])

    def newest(self) -> Height | None:
        """Height of the newest snapshot."""
        row = self._connection.execute("SELECT max(height) FROM snapshot").fetchone()
        return None if row[0] is None else Height(row[0])

    def chunk(self, digest: Digest, position: int) -> bytes | None:
        """One chunk of a snapshot that is handed out."""
        query = (
            "SELECT data FROM snapshot_chunk JOIN snapshot USING (height) WHERE snapshot.digest = ? AND position = ?"
        )
        row = self._connection.execute(query, (digest, position)).fetchone()
        return None if row is None else row[0]

    def begin_incoming(self) -> None:
        """Forget what was taken in before: a snapshot that is not whole is worth nothing."""
        self._connection.execute("DELETE FROM incoming_chunk")

    def put_incoming(self, manifest: Manifest, position: int, data: bytes) -> None:
        """Take in a chunk.

        Raises:
            SnapshotError: not the chunk that the manifest names.
        """
        found = Digest(hashlib.sha256(data).digest())
        if found != manifest.chunk(position):
            raise SnapshotError(
                f"chunk {position} of snapshot {manifest.height} has digest {hex0x(found)},"
                f" certified is {hex0x(manifest.chunk(position))}"
            )
        self._connection.execute("INSERT OR REPLACE INTO incoming_chunk VALUES (?, ?)", (position, data))

    def incoming(self, manifest: Manifest) -> Iterator[AnyPart]:
        """The parts that were taken in, each checked again.

        Raises:
            SnapshotError: one is missing or not what the manifest names.
        """
        for position in range(len(manifest)):
            query = "SELECT data FROM incoming_chunk WHERE position = ?"
            row = self._connection.execute(query, (position,)).fetchone()
            if row is None or hashlib.sha256(row[0]).digest() != manifest.chunk(position):
                raise SnapshotError(f"chunk {position} of snapshot {manifest.height} is missing or damaged")
            yield decode_chunk(row[0])

    def replace_state(self, manifest: Manifest, store: BlockStore) -> Frontier:
        """Replace the state by what was taken in, but for the last block; returns the network log below it.

        Raises:
            SnapshotError: not whole.
        """
        for table in STATE_TABLES:
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        self._connection.execute("DELETE FROM meta WHERE name IN ('registry', 'attendance', 'last_transaction_ms')")
        registry: list[bytes] = []
        frontier: Frontier | None = None
        for part in self.incoming(manifest):
            if isinstance(part, RegistryPart):
                registry.append(part.data)
            elif isinstance(part, LogPart):
                frontier = Frontier(part.size, part.peaks)
                store.log.begin(frontier)
                if part.last_transaction_ms is not None:
                    store.put_last_transaction_ms(part.last_transaction_ms)
            else:
                self._restore(part, store)
        if frontier is None:
            raise SnapshotError(f"snapshot {manifest.height} has no network log")
        store.members.put_registry(canonical.decode(b"".join(registry), RegistryState, limit_bytes=MAX_REGISTRY_BYTES))
        self.begin_incoming()
        return frontier

    def _restore(
        self,
        part: SettledPart | MotionsPart | CheckpointsPart | OffencesPart | EvmHeadPart | EvmPart,
        store: BlockStore,
    ) -> None:
        match part:
            case SettledPart(rows=rows):
                store.put_settled(unpack_settled(rows))
            case MotionsPart(rows=rows):
                values = [(row.digest, row.height, row.expires_ms) for row in rows]
                self._connection.executemany("INSERT INTO motion VALUES (?, ?, ?)", values)
            case CheckpointsPart(rows=rows):
                checkpoints = [(row.peer, row.time_ms, row.entry) for row in rows]
                self._connection.executemany("INSERT INTO peer_checkpoint VALUES (?, ?, ?)", checkpoints)
            case OffencesPart(rows=rows):
                found = [(row.validator, row.epoch, row.kind, row.offence_height, row.height) for row in rows]
                self._connection.executemany("INSERT INTO offence VALUES (?, ?, ?, ?, ?)", found)
            case EvmHeadPart(rows=rows):
                named = [(row.key, row.value) for row in rows]
                self._connection.executemany("INSERT INTO evm VALUES (?, ?)", named)
            case EvmPart(values=data):
                hashed = [(keccak256(value), value) for value in data]
                self._connection.executemany("INSERT INTO evm VALUES (?, ?)", hashed)
            case _:
                assert_never(part)


def _parts(log_before: Frontier, registry: RegistryState, store: BlockStore, chain: EmbeddedChain) -> Iterator[AnyPart]:
    """The state in its one order."""
    yield LogPart(size=log_before.size, peaks=log_before.peaks, last_transaction_ms=store.last_transaction_ms())
    for data in pieces(canonical.encode(registry)):
        yield RegistryPart(data=data)
    for packed in grouped((SETTLED_BYTES, pack_settled(record, time_ms)) for record, time_ms in store.settled()):
        yield SettledPart(rows=b"".join(packed))
    for motions in grouped((64, row) for row in _motions(store)):
        yield MotionsPart(rows=motions)
    for checkpoints in grouped((40 + len(row.entry), row) for row in _checkpoints(store)):
        yield CheckpointsPart(rows=checkpoints)
    for offences in grouped((96, row) for row in _offences(store)):
        yield OffencesPart(rows=offences)
    head = sorted(chain.head_rows().items())
    yield EvmHeadPart(rows=tuple(NamedValue(key=key, value=value) for key, value in head))
    for values in grouped((len(value), value) for value in chain.values()):
        yield EvmPart(values=values)


def _motions(store: BlockStore) -> Iterator[DecidedMotion]:
    return (DecidedMotion(digest=d, height=h, expires_ms=e) for d, h, e in store.motion_rows())


def _checkpoints(store: BlockStore) -> Iterator[PeerCheckpoint]:
    return (PeerCheckpoint(peer=p, time_ms=TimeMs(t), entry=e) for p, t, e in store.members.checkpoints())


def _offences(store: BlockStore) -> Iterator[Conviction]:
    for row in store.members.offences():
        yield Conviction(
            validator=row.validator,
            epoch=row.epoch,
            kind=row.kind,
            offence_height=row.offence_height,
            height=row.height,
        )
