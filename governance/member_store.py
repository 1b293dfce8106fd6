"""Members in a ledger's file: who they are, what of their logs is checkpointed, who was convicted. Blocking.

Transactions are the caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from nsllm import canonical
from nsllm.consensus.attendance import Attendance
from nsllm.consensus.evidence import Evidence, offence_of
from nsllm.consensus.registry import RegistryState
from nsllm.errors import EncodingError
from nsllm.governance.database import RECOVERY_HINT
from nsllm.governance.errors import DamageError
from nsllm.governance.log_entry import Checkpoint, CheckpointEntry, decode_entry
from nsllm.governance.meta_table import MetaTable
from nsllm.governance.offences import OffenceRow
from nsllm.ids import Address, Height, TimeMs

MAX_REGISTRY_BYTES: Final = 32 * 1024 * 1024
MAX_ATTENDANCE_BYTES: Final = 64 * 1024


class MemberStore:
    """Tables about members; a part of `BlockStore`."""

    def __init__(self, connection: sqlite3.Connection, meta: MetaTable, founding: RegistryState) -> None:
        """On tables that `BlockStore` has made.

        Args:
            connection: to the ledger's file.
            meta: of the same file.
            founding: the genesis's members.
        """
        self._connection = connection
        self._meta = meta
        self._founding = founding

    def put_registry(self, registry: RegistryState, before: RegistryState | None = None) -> None:
        """Keep the members after the newest block.

        Attendance changes every minute and stands apart: all members are written only if something about them changed.

        Args:
            registry: after the block.
            before: what is kept now; None: nothing that counts.
        """
        if before is None or registry.with_attendance(before.attendance) != before:
            self._meta.put("registry", canonical.encode(registry.with_attendance(Attendance())))
        self._meta.put("attendance", canonical.encode(registry.attendance))

    def registry(self) -> RegistryState:
        """Members after the newest block.

        Raises:
            DamageError: not what was written.
        """
        members, attendance = self._meta.get("registry"), self._meta.get("attendance")
        try:
            found = self._founding
            if members is not None:
                found = canonical.decode(members, RegistryState, limit_bytes=MAX_REGISTRY_BYTES)
            if attendance is not None:
                shown = canonical.decode(attendance, Attendance, limit_bytes=MAX_ATTENDANCE_BYTES)
                found = found.with_attendance(shown)
        except EncodingError as error:
            raise DamageError(f"member registry: {error.message}", hint=RECOVERY_HINT) from None
        return found

    def put_offence(self, evidence: Evidence, height: Height) -> None:
        """Keep what the block at `height` convicts a validator of."""
        seen = offence_of(evidence)
        row = (seen.validator, seen.epoch, seen.kind, seen.height, height)
        self._connection.execute("INSERT INTO offence VALUES (?, ?, ?, ?, ?)", row)

    def offences(self) -> list[OffenceRow]:
        """Every conviction, oldest first."""
        query = "SELECT validator, epoch, kind, offence_height, height FROM offence ORDER BY height, validator"
        return [OffenceRow(*row) for row in self._connection.execute(query)]

    def put_checkpoint(self, peer: Address, time_ms: TimeMs, entry: bytes) -> None:
        """Keep a peer's newest checkpoint: the time of its block, and its log entry."""
        self._connection.execute("INSERT OR REPLACE INTO peer_checkpoint VALUES (?, ?, ?)", (peer, time_ms, entry))

    def checkpoints(self) -> Iterator[tuple[Address, TimeMs, bytes]]:
        """Each peer's newest checkpoint: peer, time of its block, log entry; ascending by peer."""
        return iter(self._connection.execute("SELECT peer, time_ms, data FROM peer_checkpoint ORDER BY peer"))

    def last_checkpoint(self, peer: Address) -> tuple[Checkpoint, TimeMs] | None:
        """The peer's newest checkpoint, and the time of its block."""
        row = self._connection.execute("SELECT time_ms, data FROM peer_checkpoint WHERE peer = ?", (peer,)).fetchone()
        if row is None:
            return None
        entry = decode_entry(row[1])
        return (entry.signed.checkpoint, TimeMs(row[0])) if isinstance(entry, CheckpointEntry) else None
