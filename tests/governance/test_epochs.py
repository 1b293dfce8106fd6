"""Epochs on the ledger: members and policy change by motion, at a boundary, and receipts follow from the genesis."""

from __future__ import annotations

import time

import msgspec
import pytest

from nsllm import canonical
from nsllm.consensus.block import Block, Body
from nsllm.consensus.errors import BlockError, CertificateError, ObservationError
from nsllm.consensus.registry import admit
from nsllm.crypto import MemberKey, keccak256
from nsllm.errors import NsllmError
from nsllm.governance.errors import LedgerError, MotionError, ReceiptError
from nsllm.governance.ledger import Ledger
from nsllm.governance.light_client import EpochProof, LightClient
from nsllm.governance.log_entry import decode_entry, governance_entry
from nsllm.governance.motion import (
    MAX_TERM_MS,
    Admit,
    ChangePolicy,
    GovernanceTransaction,
    Motion,
    Revoke,
    Suspend,
    approve,
)
from nsllm.governance.receipt import Receipt, build_receipt, receipt_text
from nsllm.governance.verify import STEPS, verify_receipt
from nsllm.ids import Round
from nsllm.offload import InlineOffload

replace = msgspec.structs.replace
NEWCOMER = MemberKey(keccak256(b"a fifth validator"))
ROLES = ("contributor", "data", "validator")


def motion_of(net, action, *, by=None, age_ms=0, term_ms=60_000):
    now = net.clock.now_ms() - age_ms
    proposer = net.keys[0] if by is None else by
    return Motion(action=action, proposer=proposer.address, created_ms=now, expires_ms=now + term_ms)


def carried(net, action, signers=None, **more):
    """A governance transaction, approved by the first three validators unless told otherwise."""
    motion = motion_of(net, action, **more)
    keys = sorted(net.keys[:3] if signers is None else signers, key=lambda key: key.address)
    return GovernanceTransaction(motion=motion, approvals=tuple(approve(key, net.network, motion) for key in keys))


class Epochs:
    """A ledger network whose validators change: the keys of those in force sign."""

    def __init__(self, net, *ledgers):
        self.net, self.ledgers = net, ledgers
        self.keys = {key.address: key for key in (*net.keys, NEWCOMER)}

    async def decide(self, proposer=0):
        ledger = self.ledgers[proposer]
        block = await ledger.propose(ledger.height + 1, self.net.clock.now_ms(), self.net.keys[proposer].address)
        signers = [self.keys[address] for address in ledger.validators.members]
        decided = self.net.certify(block, signers)
        for each in self.ledgers:
            await each.validate(block, self.net.clock.now_ms(), Round(0))
            await each.commit(decided)
        return decided

    async def move(self, action, **more):
        transaction = carried(self.net, action, **more)
        for each in self.ledgers:
            assert await each.add_motion(transaction)
        assert await self.ledgers[0].due_in() == 0.0
        decided = await self.decide()
        assert transaction not in self.ledgers[0].motions()
        return decided

    async def quiet(self):
        while await self.ledgers[0].due_in() is not None:
            await self.decide()

    async def score(self, text):
        signed = self.net.record(text)
        for each in self.ledgers:
            self.net.observe_all(each, signed, keys=[self.keys[address] for address in each.validators.members])
        await self.decide()
        return signed

    async def receipt(self, signed):
        return receipt_text(build_receipt(signed, await self.ledgers[0].proofs.of(signed.record.digest())))


@pytest.fixture
async def epochs(net, autojump_clock):
    return Epochs(net, await net.open(), await net.open(by=1))


def other_policy(net):
    weights = net.genesis.policy.weights
    changed = (replace(weights[0], ppm=900_000), replace(weights[1], ppm=100_000))
    return replace(net.genesis.policy, weights=changed, reuse_min_ppm=1)


async def test_a_fifth_validator_another_policy_and_a_suspension_each_begin_an_epoch(net, epochs) -> None:
    """Every receipt verifies from the genesis alone, whatever epoch it is of."""
    ledger, texts = epochs.ledgers[0], []
    texts.append(await epochs.receipt(await epochs.score("zero")))
    fifth = net.member(NEWCOMER, ROLES)
    boundary = await epochs.move(Admit(member=fifth))
    assert boundary.block.header.ends_epoch
    assert (boundary.block.header.epoch, ledger.validators.epoch) == (0, 1), "decided in one, effective in the next"
    assert NEWCOMER.address in ledger.validators
    assert ledger.registry.get(NEWCOMER.address) == fifth
    first = await epochs.score("one")
    texts.append(await epochs.receipt(first))

    policy = other_policy(net)
    await epochs.move(ChangePolicy(policy=policy))
    assert (ledger.validators.epoch, ledger.policy) == (2, policy)
    assert ledger.validators.members == ledger.validators_of(1).members
    texts.append(await epochs.receipt(await epochs.score("two")))

    gone = net.keys[3].address
    await epochs.move(Suspend(address=gone), signers=net.keys[:3])
    assert gone not in ledger.validators
    assert ledger.registry.get(gone).weight == 0
    texts.append(await epochs.receipt(await epochs.score("three")))
    await epochs.quiet()
    texts.append(await epochs.receipt(first))

    for text, epoch in zip(texts, (0, 1, 2, 3, 1), strict=True):
        started = time.perf_counter()
        report = verify_receipt(text, net.genesis)
        assert time.perf_counter() - started < 1
        assert report.epoch == epoch
        assert f"{epoch}" in {f.value for f in report.findings if f.field == "epoch"}
    assert verify_receipt(texts[-1], net.genesis).level == "anchored", "the contract followed through all epochs"
    assert len(canonical.from_json(texts[-1], Receipt, limit_bytes=10**7).epochs) == 3
    assert ledger._state._chain.epoch() == 3


async def test_what_was_decided_survives_a_restart(net, tmp_path, autojump_clock) -> None:
    path = tmp_path / "ledger.sqlite"
    epochs = Epochs(net, await net.open(path))
    decided = await epochs.move(Admit(member=net.member(NEWCOMER, ROLES)))
    await epochs.move(ChangePolicy(policy=other_policy(net)))
    before = epochs.ledgers[0]
    await before.close()
    ledger = await net.open(path)
    assert (ledger.validators, ledger.policy, ledger.registry.state) == (
        before.validators, before.policy, before.registry.state,
    )  # fmt: skip
    assert not await ledger.add_motion(motion_in(decided)), "a motion is decided once"
    await Epochs(net, ledger).score("after")


def motion_in(decided):
    return decode_entry(decided.block.body.entries[0]).transaction


@pytest.mark.parametrize("name", ["old set", "old epoch", "new set too early"])
async def test_certificates_of_another_epoch_count_for_nothing(net, epochs, name) -> None:
    ledger = epochs.ledgers[0]
    if name == "new set too early":
        await ledger.add_motion(carried(net, Admit(member=net.member(NEWCOMER, ROLES))))
        block = await ledger.propose(1, net.clock.now_ms(), net.keys[0].address)
        signers = sorted((*net.keys[:3], NEWCOMER), key=lambda key: key.address)
        with pytest.raises(CertificateError, match="not a validator"):
            await ledger.commit(net.certify(block, signers))
        return
    await epochs.move(Suspend(address=net.keys[3].address))
    block = await ledger.propose(2, net.clock.now_ms(), net.keys[0].address)
    old = ledger.validators_of(0)
    wrong = replace(block.header, validators_hash=old.digest())
    if name == "old epoch":
        wrong = replace(wrong, epoch=0)
    decided = net.certify(replace(block, header=wrong), net.keys)
    with pytest.raises(CertificateError, match="another validator set" if name == "old set" else "of epoch 0"):
        await ledger.commit(decided)


def forged(net):
    good = carried(net, Suspend(address=net.keys[3].address))
    first, second, *rest = good.approvals
    return replace(good, approvals=(first, replace(second, signature=first.signature), *rest))


def foreign(net):
    good = carried(net, Suspend(address=net.keys[3].address))
    approvals = tuple(approve(key, keccak256(b"another"), good.motion) for key in net.keys[:3])
    return replace(good, approvals=approvals)


def turned(transaction):
    return replace(transaction, approvals=transaction.approvals[::-1])


def doubled(transaction):
    return replace(transaction, approvals=(transaction.approvals[0], *transaction.approvals))


WRONG_MOTIONS = {
    "too few approvals": (
        lambda n: carried(n, Suspend(address=n.keys[3].address), n.keys[:2]), "2 approvals, 3 are needed"),
    "not its proposer's": (
        lambda n: carried(n, Suspend(address=n.keys[3].address), n.keys[1:]), "did not approve its own motion"),
    "a stranger's approval": (
        lambda n: carried(n, Suspend(address=n.keys[3].address), [*n.keys[:3], n.stranger]), "who is no validator"),
    "a contributor's approval": (
        lambda n: carried(n, Suspend(address=n.keys[3].address), [*n.keys[:3], n.generator]), "who is no validator"),
    "a forged approval": (forged, "signed by"),
    "another network's approvals": (foreign, "signed by"),
    "approvals out of order": (
        lambda n: turned(carried(n, Suspend(address=n.keys[3].address))), "not in ascending order"),
    "an approval twice": (lambda n: doubled(carried(n, Suspend(address=n.keys[3].address))), "not in ascending order"),
    "expired": (
        lambda n: carried(n, Suspend(address=n.keys[3].address), age_ms=60_000), "expired at"),
    "of a far future": (
        lambda n: carried(n, Suspend(address=n.keys[3].address), age_ms=-60_000, term_ms=MAX_TERM_MS), "more than"),
    "a member who is one": (lambda n: carried(n, Admit(member=n.genesis.members[0])), "with this very entry"),
    "roles out of order": (
        lambda n: carried(n, Admit(member=n.member(n.stranger, ("validator", "data")))), "not in ascending order"),
    "somebody else's peer": (
        lambda n: carried(n, Admit(member=replace(n.member(n.stranger, ROLES), peer_id=n.genesis.members[0].peer_id))),
        "belongs to"),
    "a revocation of nobody": (lambda n: carried(n, Revoke(address=n.stranger.address)), "is not a member"),
    "a suspension of nobody": (lambda n: carried(n, Suspend(address=n.stranger.address)), "is not a member"),
    "the policy in force": (lambda n: carried(n, ChangePolicy(policy=n.genesis.policy)), "in force already"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MOTIONS)
async def test_a_motion_that_may_not_stand_in_a_block_is_refused_by_name(net, autojump_clock, name) -> None:
    make, reason = WRONG_MOTIONS[name]
    ledger = await net.open()
    transaction = make(net)
    body = Body(entries=(governance_entry(transaction),))
    header = (await net.propose(ledger)).header
    block = Block(header=replace(header, body_digest=body.digest(net.network)), body=body)
    with pytest.raises(BlockError, match=reason):
        await ledger.validate(block, net.clock.now_ms(), Round(0))
    # Nor does it ever make a proposer propose it.
    try:
        await ledger.add_motion(transaction)
    except NsllmError:
        assert ledger.motions() == ()
    assert await ledger.due_in() is None or reason == "not in ascending order"


async def test_motions_wait_for_approvals_and_are_bounded(net, autojump_clock) -> None:
    ledger = await net.open()
    whole = carried(net, Suspend(address=net.keys[3].address))
    for i, approval in enumerate(whole.approvals):
        if approval.validator != net.keys[0].address:
            continue
        assert await ledger.add_motion(replace(whole, approvals=(approval,)))
        assert i == 0
    assert await ledger.due_in() is None
    assert not await ledger.add_motion(ledger.motions()[0])
    for approval in whole.approvals[1:]:
        assert await ledger.add_motion(replace(whole, approvals=(approval,)))
    assert ledger.motions() == (whole,)
    assert await ledger.due_in() == 0.0
    with pytest.raises(MotionError, match="8 motions"):
        for i in range(9):
            await ledger.add_motion(carried(net, Revoke(address=net.keys[3].address), age_ms=i + 1))
    assert await ledger.add_motion(carried(net, Revoke(address=net.keys[3].address), by=net.keys[1])), (
        "others may still"
    )


async def test_the_last_validator_cannot_go(ledger_network, autojump_clock) -> None:
    net = ledger_network(1)
    ledger = await net.open()
    for action in (Suspend(address=net.keys[0].address), Revoke(address=net.keys[0].address)):
        await ledger.add_motion(carried(net, action))
    assert await ledger.due_in() is None
    with pytest.raises(ValueError, match="expires within"):
        motion_of(net, Suspend(address=net.keys[0].address), term_ms=MAX_TERM_MS + 1)


async def test_a_motion_is_decided_once_and_dies_with_its_proposers_seat(net, epochs) -> None:
    ledger = epochs.ledgers[0]
    decided = await epochs.move(Suspend(address=net.keys[3].address))
    transaction = motion_in(decided)
    assert not await ledger.add_motion(transaction)
    assert await ledger.decided_motions() == [(transaction.motion.digest(net.network), 1)]
    await epochs.quiet()
    with pytest.raises(MotionError, match="no validator of epoch 1"):
        await ledger.add_motion(carried(net, Revoke(address=net.keys[0].address), [net.keys[3]], by=net.keys[3]))
    # The same words moved again are another motion, and admit again whoever was suspended.
    await epochs.move(Admit(member=net.member(net.keys[3], ROLES)))
    assert ledger.validators.members == net.validators.members
    assert ledger.validators.epoch == 2
    block = await ledger.propose(ledger.height + 1, net.clock.now_ms(), net.keys[0].address)
    body = replace(block.body, entries=(governance_entry(transaction),))
    again = replace(block, body=body, header=replace(block.header, body_digest=body.digest(net.network)))
    with pytest.raises(BlockError, match="decided before"):
        await ledger.validate(again, net.clock.now_ms(), Round(0))


async def test_several_motions_of_one_block_make_one_change(net, epochs) -> None:
    ledger = epochs.ledgers[0]
    actions = [
        Admit(member=net.member(NEWCOMER, ROLES)),
        Suspend(address=net.keys[3].address),
        Suspend(address=net.keys[3].address),
        ChangePolicy(policy=other_policy(net)),
    ]
    for i, action in enumerate(actions):
        for each in epochs.ledgers:
            await each.add_motion(carried(net, action, age_ms=i))
    decided = await epochs.decide()
    assert len(decided.block.body.entries) == 3, "the second suspension has nothing left to do"
    assert ledger.validators.epoch == 1
    expected = sorted({*net.validators.members, NEWCOMER.address} - {net.keys[3].address})
    assert list(ledger.validators.members) == expected


async def test_revoked_members_stay_out_by_invite_and_come_back_by_motion(net, epochs) -> None:
    ledger = epochs.ledgers[0]
    member = net.member(net.stranger, ("contributor",))
    invitation = admit(net.generator, net.network, member)
    for each in epochs.ledgers:
        assert each.add_admission(invitation)
    decided = await epochs.decide()
    assert not decided.block.header.ends_epoch, "a contributor changes no epoch"
    await epochs.move(Revoke(address=net.stranger.address))
    assert ledger.registry.get(net.stranger.address) is None
    with pytest.raises(NsllmError, match="revoked"):
        ledger.add_admission(invitation)
    await epochs.move(Admit(member=member))
    assert ledger.registry.get(net.stranger.address) == member


async def test_k_comes_from_the_policy(net, epochs) -> None:
    await epochs.move(ChangePolicy(policy=replace(net.genesis.policy, approvals=1)))
    await epochs.move(ChangePolicy(policy=replace(net.genesis.policy, approvals=200)), signers=net.keys[:1])
    await epochs.quiet()
    for each in epochs.ledgers:
        await each.add_motion(carried(net, Suspend(address=net.keys[3].address), age_ms=1))
    assert await epochs.ledgers[0].due_in() is None, "three of four approved, the policy asks for all there are"
    await epochs.move(Suspend(address=net.keys[3].address), signers=net.keys)


async def test_observations_under_another_rubric_are_forgotten_at_the_boundary(net, epochs) -> None:
    ledger = epochs.ledgers[0]
    rubric = replace(net.genesis.policy.rubric, encoder=keccak256(b"another encoder"))
    signed, other = net.record("early"), net.record("late")
    for each in epochs.ledgers:
        net.observe_all(each, signed)
        net.observe(each, net.keys[0], other)
    # Decided in the block of the motion, under the rubric that is in force there.
    await epochs.move(ChangePolicy(policy=replace(net.genesis.policy, rubric=rubric)))
    assert ledger.is_settled(signed.record.digest())
    assert (await ledger.summary()).pending == 0
    assert not ledger.observations.add_commit(net.batch(net.keys[0], other)[0]), "it was under way"
    with pytest.raises(ObservationError, match="under rubric"):
        ledger.observations.add_commit(net.batch(net.keys[0], other, epoch=1)[0])


@pytest.fixture
async def receipt_of_epoch_2(net, epochs):
    await epochs.move(Admit(member=net.member(NEWCOMER, ROLES)))
    await epochs.move(ChangePolicy(policy=other_policy(net)))
    signed = await epochs.score("two")
    await epochs.quiet()
    return await epochs.receipt(signed)


async def test_no_byte_of_an_epoch_proof_changes_unnoticed(net, receipt_of_epoch_2) -> None:
    text = receipt_of_epoch_2
    verify_receipt(text, net.genesis, "anchored")
    raw = text.encode()
    first, last = raw.index(b'"epochs"'), raw.index(b'"format"')
    policy = raw.index(b'\n  "policy"')
    places = [*range(first, last, 11), *range(policy, policy + 1200, 7)]
    seen = set()
    for at in places:
        tampered = (raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).decode("utf-8", "surrogateescape")
        with pytest.raises(ReceiptError) as caught:
            verify_receipt(tampered, net.genesis)
        assert caught.value.step in STEPS
        seen.add(caught.value.step)
    assert {"format", "epochs", "policy"} <= seen


WRONG_PROOFS = {
    "one left out": (lambda r: replace(r, epochs=r.epochs[1:]), "certificate.header.epoch"),
    "one too many": (lambda r: replace(r, epochs=(*r.epochs, r.epochs[-1])), "epochs"),
    "turned around": (lambda r: replace(r, epochs=r.epochs[::-1]), "epochs[0].certificate.header.epoch"),
    "one twice": (lambda r: replace(r, epochs=(r.epochs[0],) * 2), "epochs[1].certificate.header.epoch"),
    "another's change": (
        lambda r: replace(r, epochs=(replace(r.epochs[0], change=r.epochs[1].change), r.epochs[1])),
        "epochs[0].change",
    ),
    "no policy": (lambda r: replace(r, policy=None), "certificate.header.policy_digest"),
    "another policy": (lambda r: replace(r, policy=replace(r.policy, reuse_min_ppm=2)), "policy"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PROOFS)
async def test_a_wrong_road_from_the_genesis_is_refused_by_name(net, receipt_of_epoch_2, name) -> None:
    change, field = WRONG_PROOFS[name]
    receipt = canonical.from_json(receipt_of_epoch_2, Receipt, limit_bytes=10**7)
    with pytest.raises(ReceiptError) as caught:
        verify_receipt(receipt_text(change(receipt)), net.genesis)
    assert caught.value.field == field, str(caught.value)


async def test_the_light_client_follows_headers_alone(net, epochs) -> None:
    proofs = []
    for action in (
        Admit(member=net.member(NEWCOMER, ROLES)),
        ChangePolicy(policy=other_policy(net)),
        Suspend(address=net.keys[3].address),
    ):
        decided = await epochs.move(action)
        epoch = epochs.ledgers[0]._state.epochs[-1]
        proofs.append(EpochProof(certificate=decided.certificate, change=epoch.change))
    last = await epochs.decide()
    start = LightClient.begin(net.genesis)
    steps = start.follow(proofs)
    assert [step.validators for step in steps] == [epochs.ledgers[0].validators_of(i) for i in range(4)]
    steps[-1].check(last.certificate)
    for step in steps[:-1]:
        with pytest.raises(CertificateError):
            step.check(last.certificate)
    with pytest.raises(CertificateError, match="of epoch 1"):
        start.follow(proofs[1:])
    stale = net.certify(replace(last.block, header=replace(last.block.header, height=2)), [
        epochs.keys[address] for address in steps[-1].validators.members
    ]).certificate  # fmt: skip
    with pytest.raises(CertificateError, match="which began after block 3"):
        steps[-1].check(stale)


async def test_a_follower_proposes_nothing_until_it_validates(net, autojump_clock) -> None:
    theirs = await Ledger.open(None, net.genesis, clock=net.clock, offload=InlineOffload(), key=NEWCOMER)
    epochs = Epochs(net, await net.open(), theirs)
    transaction = carried(net, Admit(member=net.member(NEWCOMER, ROLES)))
    for each in epochs.ledgers:
        await each.add_motion(transaction)
    assert await theirs.due_in() is None
    with pytest.raises(LedgerError, match="not a validator"):
        await theirs.propose(1, net.clock.now_ms(), NEWCOMER.address)
    await epochs.decide()
    assert await theirs.due_in() is not None
    block = await theirs.propose(2, net.clock.now_ms(), NEWCOMER.address)
    await epochs.ledgers[0].validate(block, net.clock.now_ms(), Round(0))
