"""Entries of the network log, and the signed checkpoints of peers' own logs. Pure values.

An entry's leaf is `leaf_hash(canonical bytes of LogEntry)`. A block's score leaves come first, in body order, then the
body's further entries: admissions ascending by address, governance transactions ascending by their motions' digests,
checkpoints ascending by peer, evidence ascending by offender.
"""

from __future__ import annotations

from typing import Final

from nsllm import canonical, crypto, merkle
from nsllm.canonical import Value
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.observation import ScoreLeaf, Unscored
from nsllm.consensus.registry import Admission
from nsllm.crypto import MemberKey
from nsllm.governance.motion import GovernanceTransaction
from nsllm.ids import AddressField, CountField, Digest, DigestField, NetworkId, SignatureField, TimeMsField

MAX_ENTRY_BYTES: Final = 65536
_CERTIFIED: Final = (b"\x81\xa5entry\x82\xa4leaf", b"\xa4type\xa9certified")
"""What stands before and after a leaf's canonical bytes in its entry's."""


class Checkpoint(Value, frozen=True, kw_only=True):
    """State of one peer's own log."""

    peer: AddressField
    size: CountField
    root: DigestField
    time_ms: TimeMsField

    def digest(self, network: NetworkId) -> Digest:
        """What the peer signs."""
        return canonical.digest("checkpoint", network, self)


class SignedCheckpoint(Value, frozen=True, kw_only=True):
    """A checkpoint and its peer's signature."""

    checkpoint: Checkpoint
    signature: SignatureField

    def check(self, network: NetworkId) -> None:
        """Pass silently if the peer signed it.

        Raises:
            SignatureError: not the peer's signature.
        """
        crypto.verify(self.checkpoint.digest(network), self.signature, self.checkpoint.peer)


class CertifiedEntry(Value, frozen=True, kw_only=True, tag="certified"):
    """A record got its agreed scores."""

    leaf: ScoreLeaf


class UnscoredEntry(Value, frozen=True, kw_only=True, tag="unscored"):
    """A record will have no scores: too many validators abstained."""

    unscored: Unscored


class AdmissionEntry(Value, frozen=True, kw_only=True, tag="admission"):
    """A member joined."""

    admission: Admission


class GovernanceEntry(Value, frozen=True, kw_only=True, tag="governance"):
    """Validators decided something about members or policy."""

    transaction: GovernanceTransaction


class CheckpointEntry(Value, frozen=True, kw_only=True, tag="checkpoint"):
    """A peer committed itself to the state of its own log."""

    signed: SignedCheckpoint


class EvidenceEntry(Value, frozen=True, kw_only=True, tag="evidence"):
    """A validator is convicted of an offence."""

    evidence: Evidence


AnyEntry = CertifiedEntry | UnscoredEntry | AdmissionEntry | GovernanceEntry | CheckpointEntry | EvidenceEntry


class LogEntry(Value, frozen=True, kw_only=True):
    """One leaf of the network log."""

    entry: AnyEntry


def certified_entry(leaf: ScoreLeaf) -> bytes:
    """Canonical entry of a certified record."""
    return certified_entry_of(canonical.encode(leaf))


def certified_entry_of(leaf: bytes) -> bytes:
    """The same, of a leaf that is encoded already."""
    before, after = _CERTIFIED
    return before + leaf + after


def unscored_entry(unscored: Unscored) -> bytes:
    """Canonical entry of a record that stays unscored."""
    return canonical.encode(LogEntry(entry=UnscoredEntry(unscored=unscored)))


def admission_entry(admission: Admission) -> bytes:
    """Canonical entry of an admission."""
    return canonical.encode(LogEntry(entry=AdmissionEntry(admission=admission)))


def governance_entry(transaction: GovernanceTransaction) -> bytes:
    """Canonical entry of a governance transaction."""
    return canonical.encode(LogEntry(entry=GovernanceEntry(transaction=transaction)))


def checkpoint_entry(signed: SignedCheckpoint) -> bytes:
    """Canonical entry of a peer's checkpoint."""
    return canonical.encode(LogEntry(entry=CheckpointEntry(signed=signed)))


def evidence_entry(evidence: Evidence) -> bytes:
    """Canonical entry of evidence."""
    return canonical.encode(LogEntry(entry=EvidenceEntry(evidence=evidence)))


def decode_entry(data: bytes) -> AnyEntry:
    """The entry that `data` spells.

    Raises:
        EncodingError: not canonical, or no known kind of entry.
    """
    return canonical.decode(data, LogEntry, limit_bytes=MAX_ENTRY_BYTES).entry


def certified_leaf_hash(leaf: ScoreLeaf) -> Digest:
    """Leaf hash under which a certified record stands in the network log."""
    return merkle.leaf_hash(certified_entry(leaf))


def sign_checkpoint(key: MemberKey, network: NetworkId, checkpoint: Checkpoint) -> SignedCheckpoint:
    """The checkpoint with its peer's signature; `key` must be the key of `checkpoint.peer`."""
    return SignedCheckpoint(checkpoint=checkpoint, signature=key.sign(checkpoint.digest(network)))
