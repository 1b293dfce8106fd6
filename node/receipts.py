"""Receipts of this peer's completions: from each one's record and what the ledger can prove of it by now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import trio
from msgspec.structs import replace

from nsllm.consensus.certified import CertifiedScores
from nsllm.governance.ledger import Ledger
from nsllm.governance.receipt import build_receipt, receipt_text
from nsllm.governance.record_proof import RecordProof
from nsllm.governance.waiters import Waiters
from nsllm.ids import Digest, hex0x
from nsllm.node.completions import Completion, Completions
from nsllm.node.context import PeerContext
from nsllm.node.errors import NotFoundError
from nsllm.node.views import ReceiptLevel, ReceiptStatus
from nsllm.record import SignedRecord

LOOK_AGAIN_S: Final = 5.0
"""Whoever waits for a receipt looks again after so long whatever is heard: a snapshot settles records silently."""


class Receipts:
    """Answers for every completion id that this peer gave out."""

    def __init__(self, context: PeerContext, completions: Completions, ledger: Ledger) -> None:
        self._context = context
        self._completions = completions
        self._ledger = ledger
        self._waiting = Waiters()
        """For certificates, by record."""
        self._waiting_on = Waiters()
        """For more than that."""
        completions.watch_ended(self.ended)

    def decided(self, records: Iterable[Digest]) -> None:
        """A block is committed that settles these records; it may carry others' further, too."""
        self._waiting.wake(records)
        self._waiting_on.wake_all()

    def ended(self, record: Digest) -> None:
        """What became of a record is written, wherever that was known from."""
        self._waiting.wake((record,))
        self._waiting_on.wake((record,))

    async def at(self, completion_id: str, level: ReceiptLevel, timeout_s: float) -> ReceiptStatus:
        """The status once it has reached `level`, can no longer reach it, or time is up.

        Raises:
            NotFoundError: this peer never gave out that id.
        """
        status = await self.status(completion_id)
        completion = None if status.is_over(level) else await self._completions.get(completion_id)
        if completion is None or completion.signed is None:
            return status
        waiters = self._waiting if level == "certified" else self._waiting_on

        async def look() -> ReceiptStatus | None:
            nonlocal status
            status = await self.status(completion_id)
            return status if status.is_over(level) else None

        record = completion.signed.record.digest()
        with trio.move_on_after(timeout_s):
            while True:
                with trio.move_on_after(LOOK_AGAIN_S):
                    return await waiters.until(record, look)
        return status

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
