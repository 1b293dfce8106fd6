"""Proof that validators took a record back: their motion, in the network log, under a certified header.

A receipt that is written afterwards carries it. One that was written before cannot know; a `RetractionNotice` tells
whoever asks a peer, and is checked with nothing but the genesis. Pure.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from nsllm import canonical, merkle
from nsllm.canonical import Value
from nsllm.consensus.certificate import Certificate
from nsllm.errors import EncodingError, NsllmError
from nsllm.governance.errors import ReceiptError
from nsllm.governance.genesis import Genesis
from nsllm.governance.light_client import EpochProof, LightClient
from nsllm.governance.log_entry import governance_entry
from nsllm.governance.motion import GovernanceTransaction, Retract
from nsllm.ids import CountField, Digest, DigestField, Height, hex0x

MAX_NOTICE_BYTES: Final = 8 * 1024 * 1024
"""JSON of 1,024 handovers between large validator sets."""


class RetractionProof(Value, frozen=True, kw_only=True):
    """The motion that retracted a record, and where it stands."""

    transaction: GovernanceTransaction
    """The motion, with the approvals that carried it."""
    index: CountField
    """Position of its entry in the network log, from 0."""
    path: Annotated[tuple[DigestField, ...], Meta(max_length=64)]
    """Siblings from the entry up to the certified header's `log_root`."""
    certificate: Certificate
    """A quorum's, of the header of the block that holds the motion: its height is that of the retraction."""

    @property
    def height(self) -> Height:
        """From which on nobody serves the record."""
        return self.certificate.header.height

    def check(self, record: Digest) -> None:
        """Pass silently if the header's log holds a motion that retracts `record`. Its certificate is checked apart.

        Raises:
            ReceiptError: it retracts something else.
            MerkleError: the motion does not stand in that log.
        """
        action = self.transaction.motion.action
        if not isinstance(action, Retract) or action.record != record:
            raise ReceiptError(
                f"the motion does not retract record {hex0x(record)}", step="revoked", field="revoked.transaction"
            )
        leaf, header = merkle.leaf_hash(governance_entry(self.transaction)), self.certificate.header
        merkle.verify_inclusion(leaf, self.index, header.log_size, self.path, header.log_root)


class RetractionNotice(Value, frozen=True, kw_only=True):
    """A retraction, provable from the genesis on its own."""

    format: Literal["nsllm-retraction/1"]
    epochs: Annotated[tuple[EpochProof, ...], Meta(max_length=1024)]
    """Handovers from the genesis's validators to those of the certificate."""
    proof: RetractionProof


def verify_notice(text: str, record: Digest, genesis: Genesis) -> Height:
    """The height at which a record was retracted, as a notice proves it.

    Args:
        text: the notice's canonical JSON, untrusted.
        record: digest of the record that the reader asked about.
        genesis: the trust root.

    Raises:
        ReceiptError: the notice does not hold.
    """
    try:
        notice = canonical.from_json(text, RetractionNotice, limit_bytes=MAX_NOTICE_BYTES)
        trust = LightClient.begin(genesis)
        for handover in notice.epochs:
            trust = trust.advance(handover)
        trust.check(notice.proof.certificate)
        notice.proof.check(record)
    except ReceiptError:
        raise
    except EncodingError as error:
        raise ReceiptError(error.message, step="format", field="document") from None
    except NsllmError as error:
        raise ReceiptError(error.message, step="revoked", field="proof") from None
    return notice.proof.height
