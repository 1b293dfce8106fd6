"""A receipt: one small file that shows a third party what was answered, how it was judged, and that it was logged.

Canonical JSON of `Receipt`. Every byte of it is bound by a signature, a hash or the format, so that none may change
unnoticed. That is why two proofs are written without their tree's size: the size of a block's score tree stands in no
header (so its path names sides instead), and the log's size is the header's. `nsllm.governance.verify` reads it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import Inclusion
from nsllm.consensus.header import Header
from nsllm.consensus.observation import ScoreLeaf
from nsllm.governance.anchor_proof import AnchorProof
from nsllm.governance.light_client import EpochProof
from nsllm.governance.policy import Policy
from nsllm.governance.record_proof import RecordProof
from nsllm.governance.retraction import RetractionProof
from nsllm.ids import CountField, DigestField
from nsllm.record import SignedRecord

MAX_RECEIPT_BYTES: Final = 16 * 1024 * 1024
"""JSON of the longest record (100,000 token ids stand a line each) and its proofs."""
Level = Literal["certified", "logged", "anchored"]
LEVELS: Final[tuple[Level, ...]] = ("certified", "logged", "anchored")
"""Ascending: each holds what the ones before it hold."""


class PathStep(Value, frozen=True, kw_only=True):
    """One sibling on the way from a leaf to a root."""

    side: Literal["left", "right"]
    """Where the sibling stands."""
    hash: DigestField
    """The sibling's."""


class EntryProof(Value, frozen=True, kw_only=True):
    """RFC 6962 audit path of the record's entry in the network log, whose size is the header's `log_size`."""

    index: CountField
    """Position of the entry in the log, from 0."""
    path: Annotated[tuple[DigestField, ...], Meta(max_length=64)]
    """Siblings from the leaf up to the certified header's `log_root`."""


class ReceiptAnchor(Value, frozen=True, kw_only=True):
    """Proof that the network's contract holds a log root that covers the record."""

    anchored: Header
    """The header whose log size, log root and id the contract holds."""
    path: Annotated[tuple[DigestField, ...], Meta(max_length=64)]
    """Audit path of the same entry under the anchored log root."""
    proof: AnchorProof
    """Of the contract's storage against the state root of `certificate.header`."""
    certificate: Certificate
    """A quorum's, of a header after the block that holds the anchor transaction."""


class Receipt(Value, frozen=True, kw_only=True):
    """Everything needed to check a record offline, given the genesis."""

    format: Literal["nsllm-receipt/1"]
    """Names this shape; another shape has another name."""
    signed: SignedRecord
    """Request and answer in full, with the generator's signature."""
    leaf: ScoreLeaf
    """What the quorum agreed on: the record's digest, its scores, who observed, under which rubric."""
    scores: Annotated[tuple[PathStep, ...], Meta(max_length=64)]
    """From the leaf up to the certified header's `scores_root`."""
    certificate: Certificate
    """A quorum's, of the header of the block that scored the record."""
    epochs: Annotated[tuple[EpochProof, ...], Meta(max_length=1024)]
    """Handovers from the genesis's validators to those of the latest epoch that a certificate here is of, in order and
    none beyond; none in epoch 0."""
    policy: Policy | None
    """In force when the record was scored; None if it is the genesis's."""
    entry: EntryProof | None
    """None below level `logged`."""
    anchor: ReceiptAnchor | None
    """None below level `anchored`."""
    revoked: RetractionProof | None
    """None if validators had not taken the record back when the receipt was written."""

    @property
    def level(self) -> Level:
        """How far the record had come when the receipt was written."""
        if self.anchor is not None:
            return "anchored"
        return "logged" if self.entry is not None else "certified"


def build_receipt(signed: SignedRecord, proof: RecordProof, level: Level | None = None) -> Receipt:
    """The receipt of a record.

    Args:
        signed: the record.
        proof: what `Ledger.proof` gave for it.
        level: at most this much; None for all that is there.
    """
    most = LEVELS.index(level) if level is not None else len(LEVELS)
    evidence = proof.anchor if most >= LEVELS.index("anchored") else None
    anchor = None
    if evidence is not None:
        anchor = ReceiptAnchor(
            anchored=evidence.anchored,
            path=evidence.entry.path,
            proof=evidence.proof,
            certificate=evidence.certificate,
        )
    entry = proof.entry if most >= LEVELS.index("logged") else None
    return Receipt(
        format="nsllm-receipt/1",
        signed=signed,
        leaf=proof.leaf,
        scores=_sided(proof.scores),
        certificate=proof.certificate,
        epochs=proof.epochs[: _latest_epoch(proof.certificate, anchor, proof.retraction)],
        policy=proof.policy,
        entry=EntryProof(index=entry.index, path=entry.path) if entry is not None else None,
        anchor=anchor,
        revoked=proof.retraction,
    )


def _latest_epoch(certificate: Certificate, anchor: ReceiptAnchor | None, retraction: RetractionProof | None) -> int:
    others = [each.certificate.header.epoch for each in (anchor, retraction) if each is not None]
    return max([certificate.header.epoch, *others])


def receipt_text(receipt: Receipt) -> str:
    """The file's text."""
    return canonical.to_json(receipt)


def _sided(inclusion: Inclusion) -> tuple[PathStep, ...]:
    """The audit path with sides instead of index and size (RFC 9162 section 2.1.3.2)."""
    steps: list[PathStep] = []
    position, last = inclusion.index, inclusion.size - 1
    hashes = iter(inclusion.path)
    while last:
        if position & 1 or position != last:  # a right-most left child has no sibling
            steps.append(PathStep(side="left" if position & 1 else "right", hash=next(hashes)))
        position >>= 1
        last >>= 1
    return tuple(steps)
