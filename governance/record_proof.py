"""What a ledger can prove of one record: scores, log entry, anchor. `nsllm.governance.receipt` writes it down."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import Inclusion
from nsllm.consensus.header import Header
from nsllm.consensus.observation import ScoreLeaf
from nsllm.governance.anchor_proof import AnchorProof
from nsllm.governance.light_client import EpochProof
from nsllm.governance.policy import Policy
from nsllm.governance.retraction import RetractionProof
from nsllm.ids import DigestField, HeightField


class AnchorEvidence(Value, frozen=True, kw_only=True):
    """The first certified anchor that covers a record."""

    anchored: Header
    """The header whose log size and root the contract holds."""
    entry: Inclusion
    """Of the record's log entry under the anchored log root."""
    proof: AnchorProof
    """Of the contract's storage against the state root in `certificate`."""
    certificate: Certificate
    """Of a later header, whose state root holds the anchor."""
    transaction_hash: DigestField
    transaction_height: HeightField


class RecordProof(Value, frozen=True, kw_only=True):
    """All that is known here of a scored record."""

    leaf: ScoreLeaf
    scores: Inclusion
    """Of the leaf under the header's `scores_root`."""
    certificate: Certificate
    entry: Inclusion | None
    """Of the record's log entry under the same header's `log_root`; None where nothing is known but the scores."""
    anchor: AnchorEvidence | None
    epochs: Annotated[tuple[EpochProof, ...], Meta(max_length=1024)]
    """Handovers from the genesis to the latest epoch that a certificate here is of, in order."""
    policy: Policy | None
    """In force when the record was scored; None if it is the genesis's."""
    retraction: RetractionProof | None = None
    """None while validators have not taken the record back."""
