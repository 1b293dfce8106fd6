"""Quorum certificates: a header, one round, and more than two thirds of precommits over it."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from msgspec import Meta

from nsllm import crypto
from nsllm.canonical import Value
from nsllm.consensus.errors import CertificateError
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import AddressField, NetworkId, RoundField, SignatureField, hex0x


class Precommit(Value, frozen=True, kw_only=True):
    """One validator's signature in a certificate."""

    validator: AddressField
    signature: SignatureField


class Certificate(Value, frozen=True, kw_only=True):
    """Proof that a quorum decided `header` in `round`."""

    header: Header
    round: RoundField
    precommits: Annotated[tuple[Precommit, ...], Meta(min_length=1, max_length=256)]
    """Ascending by address, each validator once, every signature valid (also beyond the quorum)."""

    def check(self, network: NetworkId, validators: ValidatorSet) -> None:
        """Pass silently if the certificate is valid for `network` under `validators`.

        Raises:
            CertificateError: other validators' header, unknown or repeated signer, too few signatures.
            SignatureError: a signature that is not the named validator's, wherever it stands.
        """
        _check(self, network, validators)


@lru_cache(maxsize=256)
def _check(certificate: Certificate, network: NetworkId, validators: ValidatorSet) -> None:
    """What passed is remembered: a block certifies many records, and a record is checked whenever it is served."""
    header = certificate.header
    if header.validators_hash != validators.digest():
        raise CertificateError(f"header {header.height} names another validator set")
    signers = [vote.validator for vote in certificate.precommits]
    if signers != sorted(set(signers)):
        raise CertificateError("precommits are not in ascending order of distinct validators")
    for signer in signers:
        if signer not in validators:
            raise CertificateError(f"{hex0x(signer)} is not a validator of this epoch")
    if len(signers) < validators.quorum:
        raise CertificateError(f"{len(signers)} precommits, the quorum is {validators.quorum}")
    digest = precommit_digest(network, header.epoch, header.height, certificate.round, header.id())
    for vote in certificate.precommits:
        crypto.verify(digest, vote.signature, vote.validator)
