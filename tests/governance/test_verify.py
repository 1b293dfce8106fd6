"""Receipts: the road to an anchored one, and that no byte of it changes unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
import trio
import trio.testing

from nsllm import canonical, merkle
from nsllm.consensus.block import Block, Body
from nsllm.consensus.observation import DimensionScore, Quartiles
from nsllm.consensus.registry import admit
from nsllm.crypto import keccak256
from nsllm.governance.errors import ReceiptError
from nsllm.governance.genesis import save_genesis
from nsllm.governance.receipt import Receipt, build_receipt, receipt_text
from nsllm.governance.verify import STEPS, verify_receipt
from nsllm.ids import Ppm
from nsllm.passages import with_passages
from nsllm.record import Chunk, sign_chunk, sign_record


@pytest.fixture(scope="module")
def net(ledger_network):
    return ledger_network(4)


@pytest.fixture(scope="module")
def texts(net):
    """Receipts of the middle one of three records, by level; two records follow before the anchor."""

    async def make() -> dict[str, str]:
        ledger = await net.open()
        # In ascending order, as the block has them: what happens to be hashed in a record moves nothing.
        first = sorted((net.record(name) for name in ("one", "two", "three")), key=lambda s: s.record.digest())
        records = [*first, net.record("four"), net.record("five")]
        net.observe_all(ledger, *records[:3])
        await net.decide(ledger)
        proof = await ledger.proofs.of(records[1].record.digest())
        certified = receipt_text(build_receipt(records[1], proof, "certified"))
        logged = receipt_text(build_receipt(records[1], proof))
        net.observe_all(ledger, *records[3:])
        await net.run_until_quiet(ledger)
        proof = await ledger.proofs.of(records[1].record.digest())
        return {"certified": certified, "logged": logged, "anchored": receipt_text(build_receipt(records[1], proof))}

    return trio.run(make, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("level", ["certified", "logged", "anchored"])
async def test_each_level_verifies_as_what_it_is(net, texts, level) -> None:
    report = verify_receipt(texts[level], net.genesis, level)
    assert report.level == level
    assert report.signers == 4
    standings = {finding.field: finding.standing for finding in report.findings}
    assert standings["answer"] == "proved"
    assert standings["score"] == "attested"
    assert standings["token_ids"] == "claimed"
    assert standings.get("anchor") == ("proved" if level == "anchored" else None)
    assert any("adds no trust" in note for note in report.notes) == (level == "anchored")
    assert json.loads(json.dumps(report.to_dict()))["level"] == level
    assert not any("It is" in line for line in report.lines())


@pytest.mark.parametrize(("level", "require"), [("certified", "logged"), ("logged", "anchored")])
async def test_less_than_required_is_refused(net, texts, level, require) -> None:
    with pytest.raises(ReceiptError, match=f"level: .*{level}, required is {require}"):
        verify_receipt(texts[level], net.genesis, require)


async def test_another_network_s_genesis_refuses(net, texts, ledger_network) -> None:
    with pytest.raises(ReceiptError, match=r"network: signed\.record\.network"):
        verify_receipt(texts["anchored"], ledger_network(4, "others").genesis)


async def test_no_byte_changes_unnoticed(net, texts) -> None:
    """Every 17th byte, to its neighbour; every byte was tried when the format was made, and takes a minute."""
    raw = texts["anchored"].encode()
    seen: set[str] = set()
    for at in range(0, len(raw), 17):
        tampered = (raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).decode("utf-8", "surrogateescape")
        with pytest.raises(ReceiptError) as caught:
            verify_receipt(tampered, net.genesis)
        assert caught.value.step in STEPS
        assert caught.value.field
        seen.add(caught.value.step)
    assert {"format", "network", "record", "generator", "certificate", "scores", "log", "anchor"} <= seen


CHANGE = {"policy_digest": "0x" + "11" * 32, "validators": {"epoch": 1, "members": ["0x" + "22" * 20]}}

TAMPERING = {
    "unknown field": (lambda r: r | {"extra": 1}, "format", "extra"),
    "missing field": (lambda r: {k: v for k, v in r.items() if k != "epochs"}, "format", "epochs"),
    "float": (lambda r: put(r, "signed.record.created_ms", 1.5), "format", "document"),
    "upper-case hex": (lambda r: put(r, "leaf.record", r["leaf"]["record"].upper()), "format", "leaf.record"),
    "hex without 0x": (lambda r: put(r, "leaf.record", r["leaf"]["record"][2:]), "format", "leaf.record"),
    "short hash": (lambda r: put(r, "certificate.header.parent", "0x00"), "format", "certificate.header.parent"),
    "text for a number": (lambda r: put(r, "entry.index", "1"), "format", "entry.index"),
    "another answer": (lambda r: put(r, "signed.record.text", "Yes."), "record", "leaf.record"),
    "another model": (lambda r: put(r, "signed.record.request.model", "big"), "record", "leaf.record"),
    "a better score": (lambda r: put(r, "leaf.scores.0.ppm", 999_999), "scores", "scores"),
    "another epoch": (lambda r: put(r, "certificate.header.epoch", 1), "epochs", "certificate.header.epoch"),
    "another round": (lambda r: put(r, "certificate.round", 1), "certificate", "certificate.precommits[0]"),
    "another time": (lambda r: put(r, "certificate.header.time_ms", 5), "certificate", "certificate.precommits[0]"),
    "an epoch proof": (
        lambda r: put(r, "epochs", [{"certificate": r["certificate"], "change": CHANGE}]),
        "epochs",
        "epochs",
    ),
    "a bare certificate for an epoch proof": (
        lambda r: put(r, "epochs", [r["certificate"]]),
        "format",
        "epochs[0].header",
    ),
    "another index": (lambda r: put(r, "entry.index", 0), "log", "entry"),
    "a longer log path": (lambda r: put(r, "entry.path", [*r["entry"]["path"], "0x" + "00" * 32]), "log", "entry"),
    "a shorter log path": (lambda r: put(r, "entry.path", r["entry"]["path"][:-1]), "log", "entry"),
    "a turned score path": (lambda r: put(r, "scores.0.side", "right"), "scores", "scores"),
    "a score step too many": (lambda r: put(r, "scores", [*r["scores"], r["scores"][0]]), "scores", "scores"),
    "precommits out of order": (
        lambda r: put(r, "certificate.precommits", r["certificate"]["precommits"][::-1]),
        "certificate",
        "certificate.precommits",
    ),
    "a precommit twice": (
        lambda r: put(r, "certificate.precommits", r["certificate"]["precommits"][:1] * 3),
        "certificate",
        "certificate.precommits",
    ),
    "too few precommits": (
        lambda r: put(r, "certificate.precommits", r["certificate"]["precommits"][:2]),
        "certificate",
        "certificate.precommits",
    ),
    "a bad signature beyond the quorum": (
        lambda r: put(r, "certificate.precommits.3.signature", r["certificate"]["precommits"][0]["signature"]),
        "certificate",
        "certificate.precommits[3]",
    ),
    "an anchor without an entry": (lambda r: put(r, "entry", None), "log", "entry"),
    "another anchored root": (lambda r: put(r, "anchor.anchored.log_root", "0x" + "11" * 32), "anchor", "anchor.path"),
    "another anchored parent": (
        lambda r: put(r, "anchor.anchored.parent", "0x" + "11" * 32),
        "anchor",
        "anchor.storage_nodes",
    ),
    "a state below the anchor": (
        lambda r: put(r, "anchor.certificate", r["certificate"]),
        "anchor",
        "anchor.anchored.height",
    ),
    "an anchor node too many": (
        lambda r: put(r, "anchor.proof.storage_nodes", [*r["anchor"]["proof"]["storage_nodes"], "0xc0"]),
        "anchor",
        "anchor.storage_nodes",
    ),
    "a state certificate of another time": (
        lambda r: put(r, "anchor.certificate.header.time_ms", 5),
        "anchor",
        "anchor.certificate.precommits[0]",
    ),
    "a state certificate with too few precommits": (
        lambda r: put(r, "anchor.certificate.precommits", r["anchor"]["certificate"]["precommits"][:2]),
        "anchor",
        "anchor.certificate.precommits",
    ),
    "another contract": (lambda r: put(r, "anchor.proof.contract", "0x" + "11" * 20), "anchor", "anchor.contract"),
}


def put(plain, path, value):
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target = plain
    for part in way:
        target = target[part]
    target[last] = value
    return plain


@pytest.mark.parametrize("name", TAMPERING)
async def test_tampering_is_refused_by_name(net, texts, name) -> None:
    change, step, field = TAMPERING[name]
    plain = change(json.loads(texts["anchored"]))
    text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with pytest.raises(ReceiptError) as caught:
        verify_receipt(text, net.genesis)
    assert (caught.value.step, caught.value.field) == (step, field), str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "{" * 100_000, '{"a":1,"a":2}', "\ud800", '{"format": NaN}', "9" * 10_000],
)
def test_garbage_is_refused_by_name(net, text) -> None:
    with pytest.raises(ReceiptError) as caught:
        verify_receipt(text, net.genesis)
    assert caught.value.step == "format"


async def test_white_space_and_order_are_part_of_the_spelling(net, texts) -> None:
    for text in (texts["logged"] + "\n", texts["logged"][:-1], json.dumps(json.loads(texts["logged"]))):
        with pytest.raises(ReceiptError, match="format: "):
            verify_receipt(text, net.genesis)


async def test_a_quorum_of_another_policy_is_refused(net, texts) -> None:
    receipt = canonical.from_json(texts["logged"], Receipt, limit_bytes=10**6)
    policy = msgspec.structs.replace(net.genesis.policy, reuse_min_ppm=0)
    genesis = msgspec.structs.replace(net.genesis, policy=policy)
    with pytest.raises(ReceiptError, match="network: "):
        verify_receipt(receipt_text(receipt), genesis)


@pytest.mark.parametrize("field", ["generator", "request_key"])
async def test_scores_under_a_wrong_name_are_refused_even_if_a_quorum_signed_them(net, autojump_clock, field) -> None:
    ledger = await net.open()
    signed = net.record("one")
    wrong = {"generator": net.keys[0].address, "request_key": keccak256(b"another question")}[field]
    for key in net.keys:
        signed_commit, reveal = net.batch(key, net.subject(signed)._replace(**{field: wrong}))
        ledger.observations.add_commit(signed_commit)
        ledger.observations.add_reveal(reveal)
    await net.decide(ledger)
    text = receipt_text(build_receipt(signed, await ledger.proofs.of(signed.record.digest())))
    with pytest.raises(ReceiptError, match=rf"record: leaf\.{field}: "):
        verify_receipt(text, net.genesis)


def requorumed(net, text: str, header: dict[str, object], leaf: dict[str, object]) -> str:
    """The `certified` receipt of one record with another leaf and header that the quorum signed all the same."""
    receipt = canonical.from_json(text, Receipt, limit_bytes=10**6)
    changed = msgspec.structs.replace(receipt.leaf, **leaf)
    root = merkle.leaf_hash(canonical.encode(changed))
    signed = msgspec.structs.replace(receipt.certificate.header, **{"scores_root": root, **header})
    certificate = net.certify(Block(header=signed, body=Body())).certificate
    return receipt_text(msgspec.structs.replace(receipt, leaf=changed, scores=(), certificate=certificate))


@pytest.mark.parametrize(
    ("header", "leaf", "step", "field"),
    [
        ({"policy_digest": keccak256(b"x")}, {}, "certificate", "certificate.header.policy_digest"),
        ({"validators_hash": keccak256(b"x")}, {}, "certificate", "certificate.header.validators_hash"),
        ({}, {"rubric": keccak256(b"x")}, "policy", "leaf.rubric"),
        ({}, {"scores": (DimensionScore(name="zeal", ppm=Ppm(1)),)}, "policy", "leaf.scores"),
        ({}, {"quartiles": (Quartiles(lower_ppm=Ppm(1), upper_ppm=Ppm(1)),)}, "policy", "leaf.quartiles"),
        ({}, {"observers": 2}, "scores", "leaf.observers"),
        ({}, {"observers": -1}, "scores", "leaf.observers"),
        ({}, {"observers": keccak256(b"x")[:20]}, "scores", "leaf.observers"),
    ],
)
async def test_what_no_honest_quorum_signs_is_refused(net, texts, header, leaf, step, field) -> None:
    addresses = net.validators.members
    observers = {2: addresses[:2], -1: addresses[::-1]}
    if "observers" in leaf:
        which = leaf["observers"]
        leaf = {"observers": observers.get(which) or tuple(sorted((*addresses, which)))}
    verify_receipt(requorumed(net, texts["certified"], {}, {}), net.genesis)
    with pytest.raises(ReceiptError) as caught:
        verify_receipt(requorumed(net, texts["certified"], header, leaf), net.genesis)
    assert (caught.value.step, caught.value.field) == (step, field), str(caught.value)


async def test_a_record_that_its_generator_did_not_sign_is_refused(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("one")
    forged = msgspec.structs.replace(signed, signature=net.record("two").signature)
    net.observe_all(ledger, signed)
    await net.decide(ledger)
    text = receipt_text(build_receipt(forged, await ledger.proofs.of(signed.record.digest())))
    with pytest.raises(ReceiptError, match=r"generator: signed\.signature: signed by"):
        verify_receipt(text, net.genesis)


def citing(net, evidence, shown):
    """A record that cites chunks and whose model was shown others."""
    record = net.record("one").record
    request = msgspec.structs.replace(record.request, messages=with_passages(record.request.messages, shown))
    return sign_record(net.generator, msgspec.structs.replace(record, request=request, evidence=evidence))


async def test_passages_are_proved_to_be_their_members_and_nothing_else_is_cited(net, autojump_clock) -> None:
    chunk = Chunk(
        network=net.network,
        member=net.keys[0].address,
        document=keccak256(b"file"),
        source="light.md",
        number=0,
        start=10,
        end=40,
        text="It was built in 1871.",
        encoder=keccak256(b"encoder"),
        embedding=bytes(384),
        created_ms=1,
    )
    good = sign_chunk(net.keys[0], chunk)
    forged = msgspec.structs.replace(good, chunk=msgspec.structs.replace(chunk, text="In 1999."))
    ledger = await net.open()
    for evidence, shown, refused in (
        ((good,), (good,), None),
        ((forged,), (forged,), r"evidence: signed\.record\.evidence: signed by"),
        ((good,), (), r"evidence: signed\.record\.evidence: .*not what its model was shown"),
    ):
        signed = citing(net, evidence, shown)
        net.observe_all(ledger, signed)
        await net.decide(ledger)
        text = receipt_text(build_receipt(signed, await ledger.proofs.of(signed.record.digest())))
        if refused is None:
            (found,) = [each for each in verify_receipt(text, net.genesis).findings if each.field == "evidence[0]"]
            assert found.standing == "proved"
            assert "light.md, characters 10 to 40" in found.value
        else:
            with pytest.raises(ReceiptError, match=refused):
                verify_receipt(text, net.genesis)


async def test_a_member_that_joined_later_is_attested_not_proved(net, autojump_clock) -> None:
    ledger = await net.open()
    ledger.add_admission(admit(net.generator, net.network, net.member(net.stranger, ("contributor",))))
    signed = net.record("one", net.stranger)
    net.observe_all(ledger, signed)
    await net.decide(ledger)
    report = verify_receipt(
        receipt_text(build_receipt(signed, await ledger.proofs.of(signed.record.digest()))), net.genesis, "logged"
    )
    assert {f.field: f.standing for f in report.findings}["generator.member"] == "attested"


async def test_a_solo_network_s_receipt_says_self_certified(ledger_network, autojump_clock) -> None:
    net = ledger_network(1)
    ledger = await net.open()
    signed = net.record("alone")
    net.observe_all(ledger, signed)
    await net.run_until_quiet(ledger)
    text = receipt_text(build_receipt(signed, await ledger.proofs.of(signed.record.digest())))
    report = verify_receipt(text, net.genesis, "anchored")
    assert any("self-certified" in note for note in report.notes)


PROBE = """
import sys
from pathlib import Path
from nsllm.governance.genesis import load_genesis
from nsllm.governance.verify import verify_receipt
print(verify_receipt(Path(sys.argv[1]).read_text(), load_genesis(Path(sys.argv[2])), "anchored").level)
heavy = {name.partition(".")[0] for name in sys.modules} & {
    "torch", "transformers", "libp2p", "eth", "eth_utils", "trio", "numpy", "faiss", "aiohttp", "sqlite3"
}
print(sorted(heavy))
"""


async def test_verification_imports_nothing_heavy(net, texts, tmp_path) -> None:
    receipt, genesis = tmp_path / "r.json", tmp_path / "genesis.json"
    receipt.write_text(texts["anchored"])
    save_genesis(genesis, net.genesis)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, receipt, genesis], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n") == ["anchored", "[]", ""]
