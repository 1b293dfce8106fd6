"""A peer's own log: what it did, rejections included, as an RFC 6962 tree that its member key signs.

Entries hold digests, numbers and short names, never content. Private requests stand in this log only; their entries are
salted (from the member key, so that a restart needs no stored secret), because otherwise a sibling hash in somebody
else's proof would let a guess be confirmed. What `append` acknowledges is on disk.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import trio
from msgspec import Meta

from nsllm import canonical, merkle
from nsllm.canonical import Value
from nsllm.clock import Clock
from nsllm.consensus.certified import Inclusion
from nsllm.crypto import MemberKey
from nsllm.databases import ON_DISK, Databases
from nsllm.errors import EncodingError
from nsllm.governance.database import Database
from nsllm.governance.errors import DamageError, LogError
from nsllm.governance.log_entry import Checkpoint, SignedCheckpoint, sign_checkpoint
from nsllm.governance.tree_store import TreeStore
from nsllm.ids import Address, Digest, NameField, NetworkId, TimeMsField, hex0x
from nsllm.merkle import Frontier, MerkleError
from nsllm.offload import Offload

R = TypeVar("R")

MAX_FIELDS: Final = 16
MAX_ENTRY_BYTES: Final = 8192
PRUNED_AT_ONCE: Final = 2000
"""Entries that one transaction forgets: what happens waits for it."""
RECOVERY_HINT: Final = "open with recovery: the file is moved aside and a new log begun; say so to whoever audits it"

FieldValue = Annotated[int, Meta(ge=-(2**62), le=2**62)] | Annotated[str, Meta(max_length=130)]
"""A number, a short name, or a digest as 0x and hex."""


class PeerLogField(Value, frozen=True, kw_only=True):
    """One named value of an entry."""

    name: NameField
    value: FieldValue


class PeerLogEntry(Value, frozen=True, kw_only=True):
    """One thing that the peer did."""

    time_ms: TimeMsField
    kind: NameField
    private: bool
    """Concerns a private request: shown to the peer's own operator only."""
    fields: Annotated[tuple[PeerLogField, ...], Meta(max_length=MAX_FIELDS)]
    """Ascending by name, each once."""
    salt: Annotated[bytes, Meta(min_length=16, max_length=16)]


@dataclass(frozen=True, slots=True)
class Happening:
    """Something to be logged."""

    kind: str
    """Lower-case name, such as `answered` or `input_rejected`."""
    fields: Mapping[str, int | str | bytes]
    """Digests, numbers and short names by name; never prompts, answers or keys."""
    private: bool
    """It concerns a private request."""


class PeerLog:
    """The log of one peer in one SQLite file; `close` it when done."""

    def __init__(self, database: Database, key: MemberKey, network: NetworkId, clock: Clock, offload: Offload) -> None:
        """Load the log from an open database, or begin it; blocking. Use `open`.

        Raises:
            DamageError: the tree and the entries do not fit together.
        """
        self._database = database
        self._key = key
        self._network = network
        self._clock = clock
        self._offload = offload
        self._lock = trio.Lock()
        self._first = 0
        with database.guarded():
            self._tree = TreeStore(database.connection, "peer_log")
            self._frontier = self._load()

    @classmethod
    async def open(
        cls,
        path: Path | None,
        key: MemberKey,
        network: NetworkId,
        *,
        clock: Clock,
        offload: Offload,
        recover: bool = False,
        databases: Databases = ON_DISK,
    ) -> PeerLog:
        """Open or create the log (None: in memory, for simulations).

        Args:
            path: the database file.
            key: signs checkpoints and derives the entries' salts.
            network: binds the checkpoints.
            clock: wall time of the entries.
            offload: runs the blocking work.
            recover: move a damaged file aside, begin anew and say so in `notice`; False raises instead.
            databases: where the file is.

        Raises:
            DamageError: damaged, and `recover` is False.
            StorageError: no space, or no permission.
        """

        def work() -> PeerLog:
            now_ms = clock.now_ms()
            database = Database.open(
                path, what="peer log", now_ms=now_ms, recover=recover, hint=RECOVERY_HINT, databases=databases
            )
            try:
                return cls(database, key, network, clock, offload)
            except DamageError as error:
                database.close()
                if path is None or not recover:
                    raise
                anew = Database.begin_anew(path, what="peer log", now_ms=now_ms, reason=error.message)
                return cls(anew, key, network, clock, offload)

        return await offload.run(work)

    @property
    def notice(self) -> str | None:
        """What an operator should know about opening."""
        return self._database.notice

    @property
    def size(self) -> int:
        """Entries so far."""
        return self._frontier.size

    @property
    def first(self) -> int:
        """The oldest entry that is kept."""
        return self._first

    @property
    def root(self) -> Digest:
        """Root over all entries."""
        return self._frontier.root()

    async def append(self, kind: str, fields: Mapping[str, int | str | bytes], *, private: bool) -> int:
        """Log one thing; returns its index once it is on disk. See `append_all`."""
        return await self.append_all([Happening(kind, fields, private)])

    async def append_all(self, happenings: Sequence[Happening]) -> int:
        """Log what happened, all or nothing; returns the first one's index once they are on disk.

        Raises:
            EncodingError: a name or value outside the bounds.
            StorageError: no space; nothing was logged.
        """
        async with self._lock:
            before = self._frontier
            rows = [self._entry(before.size + index, each) for index, each in enumerate(happenings)]
            self._frontier = await self._offload.run(lambda: self._store(before, rows))
            return before.size

    async def entries(self, start: int, count: int) -> list[PeerLogEntry]:
        """At most `count` entries from index `start`. Raises `LogError`: they are not kept any more."""
        if start < self._first:
            raise LogError(f"entry {start} is not kept any more, the oldest one is {self._first}")
        query = "SELECT data FROM peer_log_entry WHERE position >= ? AND position < ? ORDER BY position"

        def work() -> list[PeerLogEntry]:
            rows = self._database.connection.execute(query, (start, start + count))
            return [canonical.decode(row[0], PeerLogEntry, limit_bytes=MAX_ENTRY_BYTES) for row in rows]

        return await self._run(work)

    def checkpoint(self) -> SignedCheckpoint:
        """The log's present state, signed."""
        state = Checkpoint(
            peer=self._key.address, size=self._frontier.size, root=self._frontier.root(), time_ms=self._clock.now_ms()
        )
        return sign_checkpoint(self._key, self._network, state)

    async def inclusion(self, index: int, size: int) -> Inclusion:
        """Proof of entry `index` among the first `size` entries.

        Raises:
            LogError: no such entry or size.
        """
        if not 0 <= index < size <= self.size:
            raise LogError(f"no entry {index} among {size} in a log of {self.size}")
        if index < self._first:
            raise LogError(f"entry {index} is not kept any more, the oldest one is {self._first}")
        path = await self._run(lambda: self._tree.inclusion(index, size))
        return Inclusion(index=index, size=size, path=path)

    async def consistency(self, old_size: int, size: int) -> tuple[Digest, ...]:
        """Proof that the first `old_size` entries are a prefix of the first `size`.

        Raises:
            LogError: no such sizes.
        """
        if not 0 < old_size <= size <= self.size:
            raise LogError(f"no consistency from {old_size} to {size} in a log of {self.size}")
        if old_size < self._first:
            raise LogError(f"the first {old_size} entries are not kept any more, the oldest one is {self._first}")
        return await self._run(lambda: self._tree.consistency(old_size, size))

    async def prune(self, first: int) -> int:
        """Forget entries before `first`, at most `PRUNED_AT_ONCE`, the oldest ones first; how many went.

        The hashes that stand for them stay: every entry that is kept is proved as before, and so is growth since any
        size from the oldest of them on.

        Raises:
            StorageError: no space; nothing was forgotten.
        """
        async with self._lock:
            until = min(first, self.size, self._first + PRUNED_AT_ONCE)
            gone = until - self._first
            if gone <= 0:
                return 0
            await self._offload.run(lambda: self._forget(until))
            self._first = until
            return gone

    async def close(self) -> None:
        """Close the file; what was appended stays."""
        await self._run(self._database.close)

    async def _run(self, work: Callable[[], R]) -> R:
        def guarded() -> R:
            with self._database.guarded():
                return work()

        async with self._lock:
            return await self._offload.run(guarded)

    def _load(self) -> Frontier:
        connection = self._database.connection
        connection.execute(
            "CREATE TABLE IF NOT EXISTS peer_log_entry (position INTEGER PRIMARY KEY, data BLOB NOT NULL)"
        )
        connection.execute("CREATE TABLE IF NOT EXISTS peer_log_first (position INTEGER NOT NULL)")
        row = connection.execute("SELECT position FROM peer_log_first").fetchone()
        self._first = 0 if row is None else int(row[0])
        entries = self._first + connection.execute("SELECT count(*) FROM peer_log_entry").fetchone()[0]
        try:
            frontier = self._tree.frontier()
        except LogError as error:
            raise DamageError(f"peer log: {error.message}", hint=RECOVERY_HINT) from None
        if entries != frontier.size:
            raise DamageError(f"peer log of {frontier.size} leaves and {entries} entries", hint=RECOVERY_HINT)
        return frontier

    def _entry(self, index: int, what: Happening) -> bytes:
        salted = b"nsllm/1/peer-log-salt\0" + self._network + index.to_bytes(8, "big")
        plain = {
            "time_ms": self._clock.now_ms(),
            "kind": what.kind,
            "private": what.private,
            "fields": [{"name": name, "value": _shown(what.fields[name])} for name in sorted(what.fields)],
            "salt": hmac.digest(self._key.secret(), salted, hashlib.sha256)[:16],
        }
        data = canonical.encode(canonical.from_plain(plain, PeerLogEntry))
        if len(data) > MAX_ENTRY_BYTES:
            raise EncodingError(f"log entry of {len(data)} bytes, the limit is {MAX_ENTRY_BYTES}")
        return data

    def _store(self, frontier: Frontier, rows: Sequence[bytes]) -> Frontier:
        numbered = [(frontier.size + index, data) for index, data in enumerate(rows)]
        with self._database.transaction():
            sql = "INSERT INTO peer_log_entry (position, data) VALUES (?, ?)"
            self._database.connection.executemany(sql, numbered)
            return self._tree.extend(frontier, [merkle.leaf_hash(data) for data in rows])

    def _forget(self, first: int) -> None:
        connection = self._database.connection
        with self._database.transaction():
            connection.execute("DELETE FROM peer_log_first")
            connection.execute("INSERT INTO peer_log_first VALUES (?)", (first,))
            connection.execute("DELETE FROM peer_log_entry WHERE position < ?", (first,))
            self._tree.prune(first)


def verify_entry(
    entry: PeerLogEntry, inclusion: Inclusion, signed: SignedCheckpoint, network: NetworkId, peer: Address
) -> None:
    """Pass silently if `peer` committed itself to `entry` in a signed checkpoint.

    Raises:
        LogError: another peer's checkpoint, another size, or no inclusion; names both values.
        SignatureError: not the peer's signature.
    """
    _check_signed(signed, network, peer)
    checkpoint = signed.checkpoint
    if inclusion.size != checkpoint.size:
        raise LogError(f"inclusion in a log of {inclusion.size}, the checkpoint has {checkpoint.size}")
    leaf = merkle.leaf_hash(canonical.encode(entry))
    try:
        merkle.verify_inclusion(leaf, inclusion.index, inclusion.size, inclusion.path, checkpoint.root)
    except MerkleError as error:
        raise LogError(error.message) from None


def verify_growth(
    old: SignedCheckpoint, new: SignedCheckpoint, path: Sequence[Digest], network: NetworkId, peer: Address
) -> None:
    """Pass silently if `peer`'s log only grew between two checkpoints.

    Raises:
        LogError: another peer's checkpoint, or the old log is no prefix of the new one; names both roots.
        SignatureError: not the peer's signature.
    """
    for signed in (old, new):
        _check_signed(signed, network, peer)
    before, after = old.checkpoint, new.checkpoint
    try:
        merkle.verify_consistency(before.size, after.size, path, before.root, after.root)
    except MerkleError as error:
        raise LogError(error.message) from None


def _shown(value: int | str | bytes) -> int | str:
    return hex0x(value) if isinstance(value, bytes) else value


def _check_signed(signed: SignedCheckpoint, network: NetworkId, peer: Address) -> None:
    if signed.checkpoint.peer != peer:
        raise LogError(f"checkpoint of {hex0x(signed.checkpoint.peer)}, expected {hex0x(peer)}")
    signed.check(network)
