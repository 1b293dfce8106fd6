"""The findings of a receipt that holds: for each field its standing, in words a third party can act on."""

from __future__ import annotations

from nsllm.consensus.observation import Quartiles
from nsllm.consensus.validators import ValidatorSet
from nsllm.content import redact
from nsllm.governance.genesis import Genesis
from nsllm.governance.policy import Policy
from nsllm.governance.receipt import Receipt
from nsllm.governance.report import Finding
from nsllm.ids import hex0x


def findings_of(receipt: Receipt, genesis: Genesis, policy: Policy, validators: ValidatorSet) -> tuple[Finding, ...]:
    """Findings of a verified receipt, in the order of the receipt's own fields."""
    return (
        *_record_findings(receipt, genesis),
        *_certificate_findings(receipt, policy, validators),
        *_log_findings(receipt, validators),
    )


def notes_of(receipt: Receipt, validators: ValidatorSet) -> tuple[str, ...]:
    """What limits the trust in a verified receipt."""
    notes: list[str] = []
    if validators.size == 1:
        notes.append("self-certified: the network has one validator, so its word is the quorum")
    elif validators.faults == 0:
        notes.append(f"the network has {validators.size} validators and tolerates no faulty one (f = 0)")
    if receipt.anchor is not None:
        notes.append("the embedded chain is executed by the same validators: it adds no trust beyond the quorum")
    if receipt.revoked is not None:
        notes.append("the validators took this record back: it shows what was answered, not what counts")
    else:
        notes.append("not revoked when this receipt was written; ask a peer about later: `nsllm verify --api`")
    return tuple(notes)


def _record_findings(receipt: Receipt, genesis: Genesis) -> list[Finding]:
    record = receipt.signed.record
    word = "the generator's word, covered by its signature"
    listed = any(member.address == record.generator for member in genesis.members)
    found = [
        Finding("network", hex0x(record.network), "proved", "digest of the given genesis"),
        Finding("record", hex0x(receipt.leaf.record), "proved", "digest of the record in the receipt"),
        Finding("answer", redact(record.text), "proved", "exactly the text that was signed and scored"),
        Finding("question", redact(record.request.question()), "proved", "exactly the request that was signed"),
        Finding("generator", hex0x(record.generator), "proved", "its key signed the record"),
        Finding("generator.member", "yes", "proved", "listed in the genesis")
        if listed
        else Finding("generator.member", "yes", "attested", "the quorum scores members' records only"),
        Finding("model", record.request.model, "claimed", word),
        Finding("model_digest", hex0x(record.request.model_digest), "claimed", word),
        Finding("token_ids", f"{len(record.token_ids)} tokens", "claimed", f"that the model produced them is {word}")
        if record.token_ids or not record.text
        else Finding("token_ids", "unknown", "claimed", f"an upstream server wrote the answer and gave none: {word}"),
        Finding("sampling", "as in the record", "claimed", word),
        Finding("finish_reason", record.finish_reason, "claimed", word),
        Finding("embedding", f"{len(record.embedding)} dimensions", "claimed", word),
        Finding("created_ms", str(record.created_ms), "claimed", word),
    ]
    for number, signed in enumerate(record.evidence):
        chunk = signed.chunk
        about = f"{chunk.source}, characters {chunk.start} to {chunk.end}, document {hex0x(chunk.document)}"
        why = f"{hex0x(chunk.member)} signed it and the request shows it to the model; its truth is that member's word"
        found.append(Finding(f"evidence[{number}]", about, "proved", why))
    return found


def _certificate_findings(receipt: Receipt, policy: Policy, validators: ValidatorSet) -> list[Finding]:
    leaf, certificate = receipt.leaf, receipt.certificate
    header, n = certificate.header, validators.size
    whose = "the genesis's" if receipt.policy is None else "the epoch's"
    quorum = f"{len(certificate.precommits)} of {n} validators signed the header, the quorum is {validators.quorum}"
    median = f"lower median of {len(leaf.observers)} of {n} validators' observations; {quorum}"
    return [
        *(
            Finding(f"scores.{score.name}", f"{score.ppm} ppm", "attested", f"{median}; {_spread(quartiles)}")
            for score, quartiles in zip(leaf.scores, leaf.quartiles, strict=True)
        ),
        Finding("score", f"{policy.hybrid_ppm(leaf)} ppm", "attested", "scores under the policy's weights"),
        Finding("epoch", str(header.epoch), "proved", _way(header.epoch)),
        Finding("policy", hex0x(header.policy_digest), "proved", f"{whose} policy, named by the certified header"),
        Finding("height", str(header.height), "attested", quorum),
        Finding("time_ms", str(header.time_ms), "attested", "the proposer's clock, which the quorum found plausible"),
    ]


def _way(epoch: int) -> str:
    if epoch == 0:
        return "its validators are the genesis's"
    count = "one handover" if epoch == 1 else f"{epoch} handovers"
    return f"{count} from the genesis's validators, each certified by those whom it replaced"


def _spread(quartiles: Quartiles) -> str:
    distance = quartiles.upper_ppm - quartiles.lower_ppm
    return f"quartiles {quartiles.lower_ppm} and {quartiles.upper_ppm}, {distance} ppm apart"


def _log_findings(receipt: Receipt, validators: ValidatorSet) -> list[Finding]:
    found: list[Finding] = []
    if (revoked := receipt.revoked) is not None:
        count, n = len(revoked.transaction.approvals), len(revoked.certificate.precommits)
        why = f"{count} validators moved it, {n} signed the header of the block that holds their motion"
        found.append(Finding("revoked", f"at height {revoked.height}", "attested", why))
    header, entry, anchor = receipt.certificate.header, receipt.entry, receipt.anchor
    if entry is not None:
        place = f"entry {entry.index} of {header.log_size}"
        found.append(Finding("log", place, "proved", "RFC 6962 inclusion under the log root that the quorum certified"))
    if anchor is not None:
        place = f"log of {anchor.anchored.log_size} entries, contract {hex0x(anchor.proof.contract)}"
        why = (
            f"storage proof against the EVM state root of block {anchor.certificate.header.height}, certified by"
            f" {len(anchor.certificate.precommits)} of {validators.size} validators; adds no trust beyond the quorum"
        )
        found.append(Finding("anchor", place, "proved", why))
    return found
