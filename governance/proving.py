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
from nsllm.governance.log_entry import GovernanceEntry, decode_entry
from nsllm.governance.motion import Retract
from nsllm.governance.policy import Policy
from nsllm.governance.record_proof import AnchorEvidence, RecordProof
from nsllm.governance.retraction import RetractionNotice, RetractionProof
from nsllm.ids import Digest, Height, hex0x

MAX_PROOF_BYTES: Final = 256 * 1024


def prove_record(
    store: BlockStore,
    record: Digest,
    founding: Policy,
    epochs: Sequence[EpochRow],
    retracted: Height | None = None,
) -> RecordProof | None:
    """Scores, log entry, anchor and retraction of a record; None if it was not scored.

    Args:
        store: the ledger's tables.
        record: digest of the record.
        founding: the genesis's policy.
        epochs: all epochs after the first.
        retracted: height at which it was taken back.

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
    retraction = _prove_retraction(store, record, retracted) if retracted is not None else None
    epoch = certificate.header.epoch
    others = [each.certificate.header.epoch for each in (anchor, retraction) if each is not None]
    return RecordProof(
        leaf=leaves[position],
        scores=Inclusion(index=position, size=len(hashes), path=merkle.inclusion_path(hashes, position)),
        certificate=certificate,
        entry=store.log.inclusion(index, certificate.header.log_size),
        anchor=anchor,
        epochs=_handovers(store, epochs[: max([epoch, *others])]),
        policy=epochs[epoch - 1].policy if epoch and epochs[epoch - 1].policy != founding else None,
        retraction=retraction,
    )


def notice_of(store: BlockStore, record: Digest, height: Height, epochs: Sequence[EpochRow]) -> RetractionNotice:
    """The retraction of a record by the block at `height`, provable on its own.

    Raises:
        DamageError: a block that it takes is missing or damaged.
    """
    proof = _prove_retraction(store, record, height)
    handovers = _handovers(store, epochs[: proof.certificate.header.epoch])
    return RetractionNotice(format="nsllm-retraction/1", epochs=handovers, proof=proof)


def _prove_retraction(store: BlockStore, record: Digest, height: Height) -> RetractionProof:
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


def _handovers(store: BlockStore, epochs: Sequence[EpochRow]) -> tuple[EpochProof, ...]:
    return tuple(EpochProof(certificate=_stored(store, row.boundary).certificate, change=row.change) for row in epochs)


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
