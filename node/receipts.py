"""Receipts of this peer's completions: from each one's record and what the ledger can prove of it by now."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from nsllm.consensus.certified import CertifiedScores
from nsllm.governance.ledger import Ledger
from nsllm.governance.receipt import build_receipt, receipt_text
from nsllm.governance.record_proof import RecordProof
from nsllm.ids import hex0x
from nsllm.node.completions import Completion, Completions
from nsllm.node.context import PeerContext
from nsllm.node.errors import NotFoundError
from nsllm.node.views import ReceiptStatus
from nsllm.record import SignedRecord


class Receipts:
    """Answers for every completion id that this peer gave out."""

    def __init__(self, context: PeerContext, completions: Completions, ledger: Ledger) -> None:
        self._context = context
        self._completions = completions
        self._ledger = ledger

    async def status(self, completion_id: str) -> ReceiptStatus:
        """What is known of a completion's receipt.

        Raises:
            NotFoundError: this peer never gave out that id.
        """
        completion = await self._completions.get(completion_id)
        if completion is None:
            raise NotFoundError(f"no completion {completion_id!r} was given out here", param="id")
        if completion.signed is None:
            return _without(completion, "none")
        scores = completion.scores
        proof = await self._ledger.proofs.of(completion.signed.record.digest(), scores)
        if proof is None:
            return _without(completion, "none" if completion.state == "none" else "pending")
        return self._proved(completion, completion.signed, _as_served(proof, scores))

    def _proved(self, completion: Completion, signed: SignedRecord, proof: RecordProof) -> ReceiptStatus:
        certificate = proof.certificate
        entry, anchor = proof.entry, proof.anchor
        # The log root stands in the certified header: what is certified is logged by the same block, if that was here.
        logged: Literal["certified", "logged"] = "logged" if entry is not None else "certified"
        return ReceiptStatus(
            completion_id=completion.completion_id,
            state="anchored" if anchor is not None else logged,
            detail="",
            final=anchor is not None or (entry is None and certificate.header.height <= self._ledger.height),
            score_ppm=self._context.score_of(proof.leaf, certificate.header.epoch),
            height=certificate.header.height,
            signers=tuple(hex0x(vote.validator) for vote in certificate.precommits),
            anchor_tx=hex0x(anchor.transaction_hash) if anchor is not None else None,
            receipt_json=receipt_text(build_receipt(signed, proof)),
            revoked_height=proof.retraction.height if proof.retraction is not None else None,
        )


def _as_served(proof: RecordProof, scores: CertifiedScores | None) -> RecordProof:
    """The proof with the certificate that the record came with, if it is of the same header.

    Each validator keeps whichever quorum of signatures it saw first; so a record has one certificate, its generator's,
    whoever serves it.
    """
    if scores is None or scores.certificate.header != proof.certificate.header:
        return proof
    return replace(proof, certificate=scores.certificate)


def _without(completion: Completion, state: str) -> ReceiptStatus:
    return ReceiptStatus(
        completion_id=completion.completion_id,
        state="none" if state == "none" else "pending",
        detail=completion.detail,
        score_ppm=None,
        height=None,
        signers=(),
        anchor_tx=None,
        receipt_json=None,
    )
