"""Epochs in a ledger's file: what began after each boundary, kept for ever. Blocking; transactions are the caller's."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from nsllm import canonical
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.epoch import EpochChange
from nsllm.errors import EncodingError
from nsllm.governance.database import RECOVERY_HINT
from nsllm.governance.errors import DamageError
from nsllm.governance.light_client import EpochProof
from nsllm.governance.policy import Policy
from nsllm.ids import Height

MAX_EPOCH_BYTES: Final = 64 * 1024


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


class EpochStore:
    """Table of epochs; a part of `BlockStore`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """On tables that `BlockStore` has made."""
        self._connection = connection

    def put(self, row: EpochRow) -> None:
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

    def rows(self) -> tuple[EpochRow, ...]:
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
