"""Offline verification of receipts: a receipt and a genesis in, a report or a named refusal out. Pure.

Trust begins at the genesis alone. Every step leans on those before it:

    format       the one canonical spelling, no unknown field, bounded
    network      the record belongs to the network of this genesis
    record       the score leaf is this record's
    generator    the generator signed the record
    evidence     the members that it names signed the chunks that it cites, and its request shows them to the model
    epochs       from the genesis on, each epoch's validators certified the header that names the next one's
    certificate  a quorum of its epoch's validators signed the header, and no signature in it is invalid
    policy       the header names the policy that the receipt carries, or the genesis's; the leaf names its rubric
    scores       the leaf stands under the header's scores root, observed by enough validators
    log          the record's entry stands in the network log under the header's log root
    anchor       the contract holds a log root that covers the entry, in a state that a quorum certified
    revoked      validators took the record back: their motion stands in the log under a certified header
    level        the receipt is at least what was required

Imports neither models, network libraries nor an EVM, and takes milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from nsllm import canonical, merkle
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.header import precommit_digest
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import recover
from nsllm.errors import EncodingError, NsllmError, SignatureError
from nsllm.governance.anchor_proof import verify_anchor
from nsllm.governance.errors import ReceiptError
from nsllm.governance.findings import findings_of, notes_of
from nsllm.governance.genesis import Genesis
from nsllm.governance.light_client import LightClient
from nsllm.governance.log_entry import certified_leaf_hash
from nsllm.governance.policy import Policy
from nsllm.governance.receipt import LEVELS, MAX_RECEIPT_BYTES, EntryProof, Level, Receipt, ReceiptAnchor
from nsllm.governance.report import Report
from nsllm.governance.retraction import RetractionProof
from nsllm.ids import Digest, NetworkId, hex0x
from nsllm.passages import check_evidence

STEPS: Final = (
    "format",
    "network",
    "record",
    "generator",
    "evidence",
    "epochs",
    "certificate",
    "policy",
    "scores",
    "log",
    "anchor",
    "revoked",
    "level",
)
_PATH: Final = re.compile(r"\$[\w.\[\]]*|line \d+")
_NAME: Final = re.compile(r"field [`']([^`']+)[`']")


def verify_receipt(text: str, genesis: Genesis, require: Level = "certified") -> Report:
    """The report of a receipt that holds.

    Args:
        text: the receipt file's text, untrusted.
        genesis: the trust root, from a source that the reader trusts.
        require: least level that is good enough.

    Raises:
        ReceiptError: names the step, the field, and what is wrong with it.
    """
    receipt = _parse(text)
    verifier = _Verifier(receipt, genesis)
    verifier.check_record()
    verifier.check_epochs()
    verifier.check_certificate(receipt.certificate, "certificate")
    verifier.check_policy()
    verifier.check_scores()
    if receipt.entry is not None:
        verifier.check_log(receipt.entry)
    if receipt.anchor is not None:
        verifier.check_anchor(receipt.entry, receipt.anchor)
    if receipt.revoked is not None:
        verifier.check_retraction(receipt.revoked)
    if LEVELS.index(receipt.level) < LEVELS.index(require):
        raise ReceiptError(
            f"the receipt is {receipt.level}, required is {require}",
            hint="fetch the receipt again once the record has come further",
            step="level",
            field="anchor" if require == "anchored" else "entry",
        )
    skipped = {"log": receipt.entry is None, "anchor": receipt.anchor is None, "revoked": receipt.revoked is None}
    return Report(
        level=receipt.level,
        record=hex0x(receipt.leaf.record),
        height=receipt.certificate.header.height,
        epoch=receipt.certificate.header.epoch,
        score_ppm=verifier.policy.hybrid_ppm(receipt.leaf),
        validators=verifier.validators.size,
        signers=len(receipt.certificate.precommits),
        steps=tuple(step for step in STEPS if not skipped.get(step)),
        findings=findings_of(receipt, genesis, verifier.policy, verifier.validators),
        notes=notes_of(receipt, verifier.validators),
        revoked_height=receipt.revoked.height if receipt.revoked is not None else None,
    )


class _Verifier:
    """One receipt under one genesis; each method is a step or two of the module's list."""

    def __init__(self, receipt: Receipt, genesis: Genesis) -> None:
        self._receipt = receipt
        self._genesis = genesis
        self._network: NetworkId = genesis.network_id()
        self._trust: list[LightClient] = [LightClient.begin(genesis)]
        """By epoch."""
        self.policy: Policy = receipt.policy or genesis.policy
        """In force when the record was scored, once `check_policy` has passed."""

    @property
    def validators(self) -> ValidatorSet:
        """Who certified the record."""
        return self._trust[self._receipt.certificate.header.epoch].validators

    def check_record(self) -> None:
        signed, leaf = self._receipt.signed, self._receipt.leaf
        record = signed.record
        _same("network", "signed.record.network", record.network, self._network)
        _same("record", "leaf.record", leaf.record, record.digest())
        _same("record", "leaf.generator", leaf.generator, record.generator)
        _same("record", "leaf.request_key", leaf.request_key, record.key())
        with _step("generator", "signed.signature"):
            signed.check(self._network)
        with _step("evidence", "signed.record.evidence"):
            check_evidence(record, self._network)

    def check_epochs(self) -> None:
        receipt = self._receipt
        latest, field = receipt.certificate.header.epoch, "certificate.header.epoch"
        for name, later in (("anchor", receipt.anchor), ("revoked", receipt.revoked)):
            if later is not None and later.certificate.header.epoch > latest:
                latest, field = later.certificate.header.epoch, f"{name}.certificate.header.epoch"
        if len(receipt.epochs) != latest:
            raise ReceiptError(
                f"a certificate of epoch {latest} with {len(receipt.epochs)} handovers; one is needed for each epoch"
                " from the genesis's on",
                step="epochs",
                field="epochs" if len(receipt.epochs) > latest else field,
            )
        for i, proof in enumerate(receipt.epochs):
            self._check_certificate(self._trust[-1], proof.certificate, f"epochs[{i}].certificate", "epochs")
            with _step("epochs", f"epochs[{i}].change"):
                self._trust.append(self._trust[-1].advance(proof))

    def check_certificate(self, certificate: Certificate, field: str, step: str = "certificate") -> None:
        # `check_epochs` saw to it that there is trust in every epoch up to this one.
        self._check_certificate(self._trust[certificate.header.epoch], certificate, field, step)

    def _check_certificate(self, trust: LightClient, certificate: Certificate, field: str, step: str) -> None:
        header, validators = certificate.header, trust.validators
        if header.epoch != validators.epoch:
            raise ReceiptError(
                f"epoch {header.epoch}, expected {validators.epoch}", step=step, field=f"{field}.header.epoch"
            )
        _same(step, f"{field}.header.validators_hash", header.validators_hash, validators.digest())
        _same(step, f"{field}.header.policy_digest", header.policy_digest, trust.policy_digest)
        digest = precommit_digest(self._network, header.epoch, header.height, certificate.round, header.id())
        for i, vote in enumerate(certificate.precommits):
            with _step(step, f"{field}.precommits[{i}]"):
                found = recover(digest, vote.signature)
                if found != vote.validator:
                    raise SignatureError(f"signed by {hex0x(found)}, expected {hex0x(vote.validator)}")
        with _step(step, f"{field}.precommits"):
            trust.check(certificate)

    def check_policy(self) -> None:
        header, leaf, policy = self._receipt.certificate.header, self._receipt.leaf, self.policy
        field = "certificate.header.policy_digest" if self._receipt.policy is None else "policy"
        _same("policy", field, policy.digest(), header.policy_digest)
        if self._receipt.policy is not None and policy == self._genesis.policy:
            raise ReceiptError("the genesis's policy is not repeated", step="policy", field="policy")
        _same("policy", "leaf.rubric", leaf.rubric, policy.rubric.digest())
        names = tuple(score.name for score in leaf.scores)
        if not policy.rubric.covered(names):
            raise ReceiptError(
                f"dimensions {names}, the rubric has {policy.rubric.dimensions}", step="policy", field="leaf.scores"
            )
        if len(leaf.quartiles) != len(names):
            raise ReceiptError(
                f"{len(leaf.quartiles)} pairs of quartiles for {len(names)} dimensions",
                step="policy",
                field="leaf.quartiles",
            )

    def check_scores(self) -> None:
        leaf = self._receipt.leaf
        computed = merkle.leaf_hash(canonical.encode(leaf))
        for step in self._receipt.scores:
            pair = (step.hash, computed) if step.side == "left" else (computed, step.hash)
            computed = merkle.node_hash(*pair)
        _same("scores", "scores", computed, self._receipt.certificate.header.scores_root)
        strangers = [hex0x(address) for address in leaf.observers if address not in self.validators]
        enough = self.validators.enough_observations
        if strangers or len(leaf.observers) < enough or list(leaf.observers) != sorted(set(leaf.observers)):
            raise ReceiptError(
                f"{len(leaf.observers)} observers, {enough} distinct validators in ascending order are needed;"
                f" no validators: {', '.join(strangers) or 'none'}",
                step="scores",
                field="leaf.observers",
            )

    def check_log(self, entry: EntryProof) -> None:
        header = self._receipt.certificate.header
        self._check_inclusion("log", "entry", entry.index, header.log_size, entry.path, header.log_root)

    def check_anchor(self, entry: EntryProof | None, anchor: ReceiptAnchor) -> None:
        if entry is None:
            raise ReceiptError("an anchor without a log entry", step="log", field="entry")
        anchored, certified = anchor.anchored, anchor.certificate.header
        self._check_inclusion("anchor", "anchor.path", entry.index, anchored.log_size, anchor.path, anchored.log_root)
        if not self._receipt.certificate.header.height <= anchored.height < certified.height:
            raise ReceiptError(
                f"heights {self._receipt.certificate.header.height} (record), {anchored.height} (anchored),"
                f" {certified.height} (state) are out of order",
                step="anchor",
                field="anchor.anchored.height",
            )
        self.check_certificate(anchor.certificate, "anchor.certificate", "anchor")
        with _step("anchor", "anchor.proof"):
            verify_anchor(
                anchor.proof,
                network=self._network,
                state_root=certified.state_root,
                log_size=anchored.log_size,
                log_root=anchored.log_root,
                header_id=anchored.id(),
            )

    def check_retraction(self, proof: RetractionProof) -> None:
        self.check_certificate(proof.certificate, "revoked.certificate", "revoked")
        with _step("revoked", "revoked"):
            proof.check(self._receipt.leaf.record)

    def _check_inclusion(
        self, step: str, field: str, index: int, size: int, path: tuple[Digest, ...], root: Digest
    ) -> None:
        with _step(step, field):
            merkle.verify_inclusion(certified_leaf_hash(self._receipt.leaf), index, size, path, root)


def _parse(text: str) -> Receipt:
    try:
        text.encode()
        return canonical.from_json(text, Receipt, limit_bytes=MAX_RECEIPT_BYTES)
    except UnicodeEncodeError:
        raise ReceiptError("lone surrogates are no text", step="format", field="document") from None
    except EncodingError as error:
        raise ReceiptError(error.message, step="format", field=_field_of(error.message)) from None


def _field_of(message: str) -> str:
    """The field that a decoding error speaks of, or the line."""
    path, name = _PATH.search(message), _NAME.search(message)
    found = [path[0].removeprefix("$").removeprefix(".")] if path is not None else []
    found += [name[1]] if name is not None else []
    return ".".join(part for part in found if part) or "document"


@contextmanager
def _step(step: str, field: str) -> Generator[None]:
    try:
        yield
    except ReceiptError:
        raise
    except NsllmError as error:
        raise ReceiptError(error.message, step=step, field=field) from None


def _same(step: str, field: str, have: bytes, want: bytes) -> None:
    if have != want:
        raise ReceiptError(f"{hex0x(have)}, expected {hex0x(want)}", step=step, field=field)
