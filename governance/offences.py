"""Evidence on its way into the ledger: which is admitted in a block, how much of it, and for how long.

A validator is convicted once an epoch: more evidence against it says nothing new, so a block refuses it, and the log
holds at most one entry a validator and epoch. What a conviction costs is the policy's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from nsllm.consensus.errors import EvidenceError
from nsllm.consensus.evidence import Evidence, Offence, OffenceKind, check_evidence, offence_of
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Address, Epoch, Height, NetworkId, hex0x

MAX_BLOCK_EVIDENCE: Final = 16
"""Entries of evidence in one block, see `MAX_EVIDENCE_BYTES`. The rest waits for the next block."""


class Record(Protocol):
    """What the ledger knows of epochs and offenders."""

    def validators_of(self, epoch: Epoch) -> ValidatorSet | None:
        """The validator set of an epoch; None if there was none yet."""
        ...

    def ended(self, epoch: Epoch) -> Height | None:
        """Height of the epoch's last block; None while it goes on."""
        ...

    def is_convicted(self, validator: Address, epoch: Epoch) -> bool:
        """Does a block hold evidence against the validator, of this epoch?"""
        ...


@dataclass(frozen=True, slots=True)
class OffenceRow:
    """One conviction."""

    validator: Address
    epoch: Epoch
    kind: OffenceKind
    offence_height: Height | None
    """Where it signed what it may not; None of batches, which are of an epoch."""
    height: Height
    """Block that holds the evidence."""


def check_offence(
    evidence: Evidence, record: Record, *, network: NetworkId, height: Height, expires_heights: int
) -> Offence:
    """The offence that `evidence` proves, if a block of `height` may hold it.

    Args:
        evidence: whoever found it.
        record: of what was decided below `height`.
        network: salt of every signature.
        height: of the block.
        expires_heights: so many heights above its offence's, evidence is too old. What is of an epoch and of no height
            counts as of the epoch's last one.

    Raises:
        EvidenceError, ObservationError: unknown epoch, too old, of a height above the block, of a convicted validator,
            or no proof.
        SignatureError: a message that the named validator did not sign.
    """
    offence = offence_of(evidence)
    validators = record.validators_of(offence.epoch)
    if validators is None:
        raise EvidenceError(f"evidence of epoch {offence.epoch}, which has no validators here")
    of_height = offence.height if offence.height is not None else record.ended(offence.epoch)
    if of_height is not None and not height - expires_heights <= of_height <= height:
        raise EvidenceError(
            f"evidence of height {of_height} in block {height}; it expires after {expires_heights} heights"
        )
    if record.is_convicted(offence.validator, offence.epoch):
        raise EvidenceError(f"{hex0x(offence.validator)} is convicted in epoch {offence.epoch} already")
    check_evidence(evidence, network, validators)
    return offence
