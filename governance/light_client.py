"""The light client: from the genesis to any certificate through the headers that end epochs. Pure.

Trust begins at the genesis, whose validators certify epoch 0. The last header of an epoch names the next one's
validators and policy, and is certified by those whom it replaces; so each step needs one certificate and the change
that it names, however many blocks lie between. Receipts carry these steps, and the ledger takes the same ones as it
commits blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nsllm.canonical import Value
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.errors import CertificateError
from nsllm.consensus.validators import ValidatorSet
from nsllm.governance.genesis import Genesis
from nsllm.ids import Digest, Height, NetworkId, hex0x


class EpochProof(Value, frozen=True, kw_only=True):
    """One handover: the last header of an epoch, certified, and the change that it names."""

    certificate: Certificate
    change: EpochChange


@dataclass(frozen=True, slots=True)
class LightClient:
    """What is trusted during one epoch."""

    network: NetworkId
    validators: ValidatorSet
    """Whose certificates count; the epoch's number stands in it."""
    policy_digest: Digest
    """Of the policy in force."""
    since: Height
    """Height of the last block of the epoch before; 0 in the first."""

    @classmethod
    def begin(cls, genesis: Genesis) -> LightClient:
        """Trust in the genesis alone."""
        return cls(genesis.network_id(), genesis.registry().validators(), genesis.policy.digest(), Height(0))

    def check(self, certificate: Certificate) -> None:
        """Pass silently if this epoch's validators decided the header.

        Raises:
            CertificateError: of another epoch, of a height before it, under another policy or set, too few signers.
            SignatureError: a signature that is not the named validator's.
        """
        header, epoch = certificate.header, self.validators.epoch
        if header.epoch != epoch:
            raise CertificateError(f"certificate of epoch {header.epoch}, trusted are the validators of epoch {epoch}")
        if header.height <= self.since:
            raise CertificateError(f"header {header.height} of epoch {epoch}, which began after block {self.since}")
        if header.policy_digest != self.policy_digest:
            raise CertificateError(
                f"header {header.height} names policy {hex0x(header.policy_digest)}, in force is"
                f" {hex0x(self.policy_digest)}"
            )
        certificate.check(self.network, self.validators)

    def advance(self, proof: EpochProof) -> LightClient:
        """What is trusted in the next epoch.

        Raises:
            CertificateError: see `check`; or the header does not hand over to this change.
            SignatureError: see `check`.
        """
        certificate, change = proof.certificate, proof.change
        self.check(certificate)
        header = certificate.header
        if not header.ends_epoch or header.next_epoch != change.digest():
            raise CertificateError(
                f"header {header.height} hands over to {hex0x(header.next_epoch)}, not to {hex0x(change.digest())}"
            )
        if change.validators.epoch != self.validators.epoch + 1:
            raise CertificateError(f"epoch {change.validators.epoch} after epoch {self.validators.epoch}")
        return LightClient(self.network, change.validators, change.policy_digest, header.height)

    def follow(self, proofs: Iterable[EpochProof]) -> tuple[LightClient, ...]:
        """This trust and that after each handover, in order.

        Raises:
            CertificateError, SignatureError: see `advance`.
        """
        steps: list[LightClient] = [self]
        for proof in proofs:
            steps.append(steps[-1].advance(proof))
        return tuple(steps)
