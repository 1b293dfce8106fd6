"""A group's record as others hold it: sealed under the group's key, certified in the open. Pure values.

A holder outside the group cannot read it. It checks what it can: the certificate, and that the envelope comes from the
generator or from a validator that scored the record, who must have been in the group to read it.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical, crypto, merkle
from nsllm.cache_dht.errors import RecordRefusedError
from nsllm.canonical import Value
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import Inclusion
from nsllm.consensus.observation import ScoreLeaf
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.ids import AddressField, Digest, DigestField, NetworkId, SignatureField, hex0x, short
from nsllm.record import MAX_RECORD_BYTES

MAX_SEALED_BYTES: Final = MAX_RECORD_BYTES + MAX_RECORD_BYTES // 8
"""A record, padded so that its length tells little."""
MAX_CERTIFIED_SEALED_BYTES: Final = MAX_SEALED_BYTES + 64 * 1024


class Sealed(Value, frozen=True, kw_only=True):
    """An envelope, and who sealed it."""

    record: DigestField
    """Digest of the record inside."""
    request_key: DigestField
    """Salted by the group."""
    sealer: AddressField
    body: Annotated[bytes, Meta(max_length=MAX_SEALED_BYTES)]
    """Nonce and ciphertext, see `nsllm.cache_dht.group`."""

    def digest(self, network: NetworkId) -> Digest:
        """What the sealer signs."""
        return canonical.digest("sealed", network, self)


class SealedRecord(Value, frozen=True, kw_only=True):
    """An envelope and its sealer's signature."""

    sealed: Sealed
    signature: SignatureField

    def check(self, network: NetworkId) -> None:
        """Pass silently if its sealer signed it.

        Raises:
            SignatureError: not its signature.
        """
        crypto.verify(self.sealed.digest(network), self.signature, self.sealed.sealer)


class CertifiedSealed(Value, frozen=True, kw_only=True):
    """An envelope with the scores that a quorum certified for the record inside."""

    envelope: SealedRecord
    leaf: ScoreLeaf
    inclusion: Inclusion
    certificate: Certificate

    def check(self, network: NetworkId, validators: ValidatorSet) -> None:
        """Pass silently if what can be seen from outside holds.

        Raises:
            RecordRefusedError: another record's scores, or sealed by somebody who need not have read it.
            CertificateError, SignatureError, MerkleError: see `CertifiedRecord.check`.
        """
        sealed, leaf = self.envelope.sealed, self.leaf
        if (sealed.record, sealed.request_key) != (leaf.record, leaf.request_key):
            raise RecordRefusedError(f"scores of record {short(leaf.record)}, sealed is {short(sealed.record)}")
        if sealed.sealer != leaf.generator and sealed.sealer not in leaf.observers:
            raise RecordRefusedError(f"sealed by {hex0x(sealed.sealer)}, who neither generated nor scored the record")
        self.envelope.check(network)
        merkle.verify_inclusion(
            merkle.leaf_hash(canonical.encode(leaf)),
            self.inclusion.index,
            self.inclusion.size,
            self.inclusion.path,
            self.certificate.header.scores_root,
        )
        self.certificate.check(network, validators)


def sign_sealed(key: MemberKey, network: NetworkId, sealed: Sealed) -> SealedRecord:
    """The envelope with its sealer's signature; `key` must be the key of `sealed.sealer`."""
    return SealedRecord(sealed=sealed, signature=key.sign(sealed.digest(network)))
