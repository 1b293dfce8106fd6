"""Reads out of a ledger's tables all that can be proved of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nsllm import canonical, merkle
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certified import Inclusion
from nsllm.governance.anchor_proof import AnchorProof
from nsllm.governance.block_store import BlockStore, EpochRow
from nsllm.governance.database import RECOVERY_HINT
from nsllm.governance.errors import DamageError
from nsllm.governance.light_client import EpochProof
from nsllm.governance.policy import Policy
from nsllm.governance.record_proof import AnchorEvidence, RecordProof
from nsllm.ids import Digest, Height

MAX_PROOF_BYTES: Final = 256 * 1024


def prove_record(store: BlockStore, record: Digest, founding: Policy, epochs: Sequence[EpochRow]) -> RecordProof | None:
    """Scores, log entry and anchor of a record; None if it was not scored.

    Args:
        store: the ledger's tables.
        record: digest of the record.
        founding: the genesis's policy.
        epochs: all epochs after the first.

    Raises:
        DamageError: a block that the indexes name is missing or damaged.
    """
    found = store.location(record)
    if found is None:
        return None
    height, position = found
    certificate = _stored(store, height).certificate
    leaves = store.leaves(height)
    hashes = [merkle.leaf_hash(canonical.encode(leaf)) for leaf in leaves]
    index = store.row(height).log_start + position
    anchor = _prove_anchor(store, index)
    epoch = certificate.header.epoch
    latest = max(epoch, anchor.certificate.header.epoch) if anchor is not None else epoch
    return RecordProof(
        leaf=leaves[position],
        scores=Inclusion(index=position, size=len(hashes), path=merkle.inclusion_path(hashes, position)),
        certificate=certificate,
        entry=store.log.inclusion(index, certificate.header.log_size),
        anchor=anchor,
        epochs=tuple(
            EpochProof(certificate=_stored(store, row.boundary).certificate, change=row.change)
            for row in epochs[:latest]
        ),
        policy=epochs[epoch - 1].policy if epoch and epochs[epoch - 1].policy != founding else None,
    )


def _prove_anchor(store: BlockStore, index: int) -> AnchorEvidence | None:
    row = store.anchor_covering(index + 1)
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
