"""A certified record: an answer, its agreed scores, and the proof that a quorum agreed. What caches store and serve."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical, merkle
from nsllm.canonical import Value
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.errors import CertificateError
from nsllm.consensus.observation import ScoreLeaf
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import CountField, DigestField, NetworkId, TimeMs
from nsllm.record import MAX_RECORD_BYTES, SignedRecord

MAX_CERTIFIED_BYTES: Final = MAX_RECORD_BYTES + 64 * 1024


class Inclusion(Value, frozen=True, kw_only=True):
    """RFC 6962 audit path of one leaf."""

    index: CountField
    size: CountField
    path: Annotated[tuple[DigestField, ...], Meta(max_length=64)]
    """Sibling hashes from the leaf up."""


class CertifiedScores(Value, frozen=True, kw_only=True):
    """What a quorum agreed on about a record, without the record: score leaf, its inclusion, certificate."""

    leaf: ScoreLeaf
    inclusion: Inclusion
    certificate: Certificate


class CertifiedRecord(Value, frozen=True, kw_only=True):
    """Record, score leaf, inclusion of the leaf in the header's `scores_root`, certificate of that header."""

    signed: SignedRecord
    leaf: ScoreLeaf
    inclusion: Inclusion
    certificate: Certificate

    @property
    def scores(self) -> CertifiedScores:
        """All of it but the record."""
        return CertifiedScores(leaf=self.leaf, inclusion=self.inclusion, certificate=self.certificate)

    def age_ms(self, now_ms: TimeMs) -> int:
        """How old the answer is: by its generator's word, or since it was certified if that is longer ago."""
        return max(0, now_ms - min(self.signed.record.created_ms, self.certificate.header.time_ms))

    def check(self, network: NetworkId, validators: ValidatorSet) -> None:
        """Pass silently if every part proves the next, from the generator's signature to the quorum.

        Raises:
            CertificateError: leaf of another record, or not under the certified root.
            EncodingError, SignatureError: see `SignedRecord.check` and `Certificate.check`.
        """
        self.signed.check(network)
        record = self.signed.record
        if self.leaf.record != record.digest() or self.leaf.generator != record.generator:
            raise CertificateError("the score leaf is another record's")
        if self.leaf.request_key != record.key():
            raise CertificateError("the score leaf names another request")
        merkle.verify_inclusion(
            merkle.leaf_hash(canonical.encode(self.leaf)),
            self.inclusion.index,
            self.inclusion.size,
            self.inclusion.path,
            self.certificate.header.scores_root,
        )
        self.certificate.check(network, validators)
