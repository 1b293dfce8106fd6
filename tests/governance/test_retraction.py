"""Records that validators take back: by motion, certified, and proved in receipts and notices."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.consensus import registry as registry_module
from nsllm.consensus.errors import BlockError
from nsllm.consensus.registry import Retraction
from nsllm.crypto import keccak256
from nsllm.governance import motion as motion_module
from nsllm.governance.errors import MotionError, ReceiptError
from nsllm.governance.motion import GovernanceTransaction, Motion, Retract, Suspend, approve
from nsllm.governance.receipt import build_receipt, receipt_text
from nsllm.governance.retraction import RetractionNotice, verify_notice
from nsllm.governance.verify import verify_receipt
from nsllm.ids import Digest, Height, Round

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def net(ledger_network):
    return ledger_network(4)


RECORD = keccak256(b"a record")


def carried(net, action, signers=3):
    now = net.clock.now_ms()
    motion = Motion(action=action, proposer=net.keys[0].address, created_ms=now, expires_ms=now + 60_000)
    keys = sorted(net.keys[:signers], key=lambda key: key.address)
    return GovernanceTransaction(motion=motion, approvals=tuple(approve(key, net.network, motion) for key in keys))


async def scored(net, ledger, text="rain"):
    signed = net.record(text)
    net.observe_all(ledger, signed)
    await net.decide(ledger)
    return signed


async def retract(net, ledger, record):
    assert await ledger.add_motion(carried(net, Retract(record=record)))
    return await net.decide(ledger)


async def test_a_receipt_written_later_says_so_and_one_written_before_cannot(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = await scored(net, ledger)
    record = signed.record.digest()
    before = receipt_text(build_receipt(signed, await ledger.proofs.of(record)))
    assert await ledger.proofs.retraction(record) is None
    decided = await retract(net, ledger, record)
    assert not decided.block.header.ends_epoch, "a record is no reason for another epoch"
    height = decided.block.header.height
    assert ledger.registry.state.retracted == (Retraction(record=record, height=height),)

    after = receipt_text(build_receipt(signed, await ledger.proofs.of(record)))
    report = verify_receipt(after, net.genesis)
    assert report.revoked_height == height
    assert f"revoked at height {height}" in report.lines()[0]
    assert report.to_dict()["revoked_height"] == height
    assert "revoked" in report.steps
    old = verify_receipt(before, net.genesis)
    assert old.revoked_height is None
    assert any("not revoked when this receipt was written" in note for note in old.notes)
    notice = canonical.to_json(await ledger.proofs.retraction(record))
    assert verify_notice(notice, record, net.genesis) == height

    # The proof outlives blocks, anchors and other epochs.
    assert await ledger.add_motion(carried(net, Suspend(address=net.keys[3].address)))
    await net.decide(ledger)
    await net.run_until_quiet(ledger)
    late = verify_receipt(receipt_text(build_receipt(signed, await ledger.proofs.of(record))), net.genesis, "anchored")
    assert late.revoked_height == height


async def test_a_retraction_in_a_later_epoch_brings_its_handovers(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = await scored(net, ledger)
    record = signed.record.digest()
    assert await ledger.add_motion(carried(net, Suspend(address=net.keys[3].address)))
    await net.decide(ledger)
    decided = await retract(net, ledger, record)
    text = receipt_text(build_receipt(signed, await ledger.proofs.of(record)))
    assert len(json.loads(text)["epochs"]) == 1
    assert verify_receipt(text, net.genesis).revoked_height == decided.block.header.height
    notice = canonical.to_json(await ledger.proofs.retraction(record))
    assert verify_notice(notice, record, net.genesis) == decided.block.header.height
    bare = json.loads(notice) | {"epochs": []}
    with pytest.raises(ReceiptError, match="epoch"):
        verify_notice(json.dumps(bare, indent=2) + "\n", record, net.genesis)


async def test_no_byte_of_the_proof_changes_unnoticed(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = await scored(net, ledger)
    record = signed.record.digest()
    await retract(net, ledger, record)
    other = await scored(net, ledger, "snow")
    text = receipt_text(build_receipt(signed, await ledger.proofs.of(record)))
    raw = text.encode()
    for at in range(raw.index(b'"revoked": {'), len(raw), 7):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        tampered = changed.decode("utf-8", "surrogateescape")
        with pytest.raises(ReceiptError):
            verify_receipt(tampered, net.genesis)
    notice = canonical.to_json(await ledger.proofs.retraction(record))
    for at in range(0, len(notice), 7):
        tampered = notice[:at] + chr(ord(notice[at]) ^ 1) + notice[at + 1 :]
        with pytest.raises(ReceiptError):
            verify_notice(tampered, record, net.genesis)
    with pytest.raises(ReceiptError, match="does not retract"):
        verify_notice(notice, other.record.digest(), net.genesis)
    # Another record's retraction, put into a receipt that has none.
    proof = replace(await ledger.proofs.of(record), retraction=None)
    foreign = replace(
        await ledger.proofs.of(other.record.digest()), retraction=(await ledger.proofs.of(record)).retraction
    )
    assert verify_receipt(receipt_text(build_receipt(signed, proof)), net.genesis).revoked_height is None
    with pytest.raises(ReceiptError, match="does not retract"):
        verify_receipt(receipt_text(build_receipt(other, foreign)), net.genesis)


async def test_a_record_is_retracted_once_by_enough_validators(net, autojump_clock) -> None:
    ledger = await net.open()
    await retract(net, ledger, RECORD)
    motion = replace(carried(net, Retract(record=RECORD)).motion, created_ms=net.clock.now_ms() - 1)
    approvals = tuple(approve(key, net.network, motion) for key in net.keys[:3])
    await ledger.add_motion(GovernanceTransaction(motion=motion, approvals=approvals))
    block = await ledger.propose(ledger.height + 1, net.clock.now_ms(), net.keys[0].address)
    assert block.body.entries == (), "it has nothing left to do"
    few = await net.open()
    await few.add_motion(carried(net, Retract(record=RECORD), signers=2))
    assert await few.due_in() is None


async def test_what_was_retracted_survives_a_restart_and_is_certified(net, tmp_path, autojump_clock) -> None:
    ledger = await net.open(tmp_path / "ledger.sqlite")
    before = ledger.registry.state.digest(net.network)
    decided = await retract(net, ledger, RECORD)
    assert decided.block.header.registry_hash != before
    await ledger.close()
    again = await net.open(tmp_path / "ledger.sqlite")
    assert again.registry.state.retracted_at(RECORD) == decided.block.header.height


async def test_a_block_that_claims_another_registry_is_refused(net, autojump_clock) -> None:
    ledger = await net.open()
    assert await ledger.add_motion(carried(net, Retract(record=RECORD)))
    block = await ledger.propose(1, net.clock.now_ms(), net.keys[0].address)
    silent = replace(block, header=replace(block.header, registry_hash=ledger.registry.state.digest(net.network)))
    with pytest.raises(BlockError, match="registry_hash"):
        await ledger.validate(silent, net.clock.now_ms(), Round(0))


def test_there_is_a_most(net, monkeypatch) -> None:
    monkeypatch.setattr(motion_module, "MAX_RETRACTED", 2)
    state, policy = net.genesis.registry().state, net.genesis.policy
    for number in range(2):
        state, _ = motion_module.apply(Retract(record=keccak256(b"%d" % number)), state, policy, Height(number))
    with pytest.raises(MotionError, match="2 records are retracted, the most there can be"):
        motion_module.check_possible(Retract(record=RECORD), state, policy)
    full = registry_module.MAX_RETRACTED * len(canonical.encode(Retraction(record=RECORD, height=Height(2**40))))
    assert full < 1.2e6, "what the constant's comment says"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 1000)), max_size=60))
def test_retractions_stay_ordered_and_the_first_height_counts(net, steps) -> None:
    state, first = net.genesis.registry().state, {}
    for number, height in steps:
        record = Digest(keccak256(b"%d" % number))
        first.setdefault(record, height)
        state = state.with_retracted(record, Height(height))
        member = net.member(net.stranger, ("data",))
        state = state.with_member(member).without(member.address)
    assert [(each.record, each.height) for each in state.retracted] == sorted(first.items())
    assert {record: state.retracted_at(record) for record in first} == first
    assert state.retracted_at(RECORD) is None


def test_a_notice_of_another_shape_is_refused_by_name(net) -> None:
    with pytest.raises(ReceiptError, match="format"):
        verify_notice("{}", RECORD, net.genesis)
    assert RetractionNotice.__struct_fields__ == ("format", "epochs", "proof")
