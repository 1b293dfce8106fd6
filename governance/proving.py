"""Reads out of a ledger's tables all that can be proved of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from nsllm import canonical
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import CertifiedScores, Inclusion
from nsllm.consensus.observation import ScoreLeaf
from nsllm.governance.anchor_proof import AnchorProof
from nsllm.governance.block_store import BlockStore
from nsllm.governance.database import RECOVERY_HINT
from nsllm.governance.epoch_store import EpochRow
from nsllm.governance.errors import DamageError
from nsllm.governance.log_entry import GovernanceEntry, decode_entry
from nsllm.governance.motion import Retract
from nsllm.governance.policy import Policy
from nsllm.governance.record_proof import AnchorEvidence, RecordProof
from nsllm.governance.retraction import RetractionNotice, RetractionProof
from nsllm.ids import Digest, Height, hex0x

MAX_PROOF_BYTES: Final = 256 * 1024


def prove_record(store: BlockStore, record: Digest, founding: Policy, epochs: Sequence[EpochRow]) -> RecordProof | None:
    """Scores, log entry and anchor of a record, without handovers; None if no stored block scores it.

    Args:
        store: the ledger's tables.
        record: digest of the record.
        founding: the genesis's policy.
        epochs: all epochs after the first.

    Raises:
        DamageError: a block that the indexes name is missing or damaged.
    """
    found = prove_scores(store, record)
    if found is None:
        return None
    leaf, scores, certificate = found
    index = store.row(certificate.header.height).log_start + scores.index
    return RecordProof(
        leaf=leaf,
        scores=scores,
        certificate=certificate,
        entry=store.log.inclusion(index, certificate.header.log_size),
        anchor=_prove_anchor(store, index),
        epochs=(),
        policy=_policy(certificate.header.epoch, founding, epochs),
    )


def prove_given(given: CertifiedScores, founding: Policy, epochs: Sequence[EpochRow]) -> RecordProof | None:
    """What scores that somebody else gave us prove, verified as they are: neither log entry nor anchor.

    None if they are of an epoch that has not begun here.
    """
    epoch = given.certificate.header.epoch
    if epoch > len(epochs):
        return None
    return RecordProof(
        leaf=given.leaf,
        scores=given.inclusion,
        certificate=given.certificate,
        entry=None,
        anchor=None,
        epochs=(),
        policy=_policy(epoch, founding, epochs),
    )


def completed(proof: RecordProof, retraction: RetractionProof | None, epochs: Sequence[EpochRow]) -> RecordProof:
    """A proof with the record's retraction, and the handovers from the genesis to the latest epoch in it."""
    parts = (proof, proof.anchor, retraction)
    latest = max(part.certificate.header.epoch for part in parts if part is not None)
    return replace(proof, retraction=retraction, epochs=tuple(row.proof for row in epochs[:latest]))


def notice_of(proof: RetractionProof, epochs: Sequence[EpochRow]) -> RetractionNotice:
    """A retraction, provable on its own."""
    handovers = tuple(row.proof for row in epochs[: proof.certificate.header.epoch])
    return RetractionNotice(format="nsllm-retraction/1", epochs=handovers, proof=proof)


def prove_retraction(store: BlockStore, record: Digest, height: Height) -> RetractionProof:
    """The proof of a retraction that the block at `height` holds.

    Raises:
        DamageError: the block or the motion is missing.
    """
    row, certificate = store.row(height), _stored(store, height).certificate
    entries = store.log.entries(row.log_start, row.log_size - row.log_start)
    for index, data in enumerate(entries, start=row.log_start):
        entry = decode_entry(data)
        action = entry.transaction.motion.action if isinstance(entry, GovernanceEntry) else None
        if isinstance(entry, GovernanceEntry) and isinstance(action, Retract) and action.record == record:
            path = store.log.inclusion(index, row.log_size).path
            return RetractionProof(transaction=entry.transaction, index=index, path=path, certificate=certificate)
    raise DamageError(f"block {height} holds no motion that retracts {hex0x(record)}", hint=RECOVERY_HINT)


def prove_scores(store: BlockStore, record: Digest) -> tuple[ScoreLeaf, Inclusion, Certificate] | None:
    """Scores of a record, their inclusion in the header's `scores_root`, and its certificate; None without scores."""
    found = store.location(record)
    if found is None:
        return None
    height, position = found
    inclusion = store.score_inclusion(height, position)
    return store.leaves(height)[position], inclusion, _stored(store, height).certificate


def _policy(epoch: int, founding: Policy, epochs: Sequence[EpochRow]) -> Policy | None:
    """In force in an epoch; None if it is the genesis's."""
    return epochs[epoch - 1].policy if epoch and epochs[epoch - 1].policy != founding else None


def _prove_anchor(store: BlockStore, index: int) -> AnchorEvidence | None:
    row = store.anchors.covering(index + 1)
    if row is None or row.proof is None or row.proof_height is None:
        return None
    return AnchorEvidence(
        anchored=_stored(store, row.header_height).block.header,
        entry=store.log.inclusion(index, row.log_size),
        proof=canonical.decode(row.proof, AnchorProof, limit_bytes=MAX_PROOF_BYTES),
        certificate=_stored(store, row.proof_height).certificate,
        transaction_hash=row.transaction_hash,
        transaction_height=row.transaction_height,
    )


def _stored(store: BlockStore, height: Height) -> DecidedBlock:
    decided = store.block(height)
    if decided is None:
        raise DamageError(f"block {height} is missing", hint=RECOVERY_HINT)
    return decided
