"""Evidence in the ledger: it makes a block, convicts once an epoch, expires; a block with bad evidence is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.batch_conflict import BatchConflict, conflict_of
from nsllm.consensus.block import Block, Body
from nsllm.consensus.errors import BlockError, EvidenceError
from nsllm.consensus.evidence import Amnesia, DoubleVote, Evidence, amnesia, double_vote
from nsllm.consensus.vote import Choice, Vote, VoteBody
from nsllm.crypto import keccak256
from nsllm.errors import SignatureError
from nsllm.governance.log_entry import EvidenceEntry, checkpoint_entry, decode_entry, evidence_entry
from nsllm.governance.offences import MAX_BLOCK_EVIDENCE, OffenceRow
from nsllm.ids import Epoch, Height, Round

A, B = keccak256(b"a"), keccak256(b"b")


def vote(
    net: Any, who: int, kind: str, value: Any, *, height: int = 1, round_: int = 0, epoch: int = 0, lock: Any = None
) -> Vote:
    key = net.keys[who]
    said: dict[str, Any] = {"kind": kind, "value": value, "validator": key.address, "lock": lock, "valid_round": None}
    body = VoteBody(epoch=Epoch(epoch), height=Height(height), round=Round(round_), **said)
    return body.signed(key.sign(body.digest(net.network)))


def doubled(net: Any, who: int, **more: Any) -> DoubleVote:
    return double_vote(vote(net, who, "prevote", A, **more), vote(net, who, "prevote", B, **more))


def forgetful(net: Any, who: int, height: int = 1) -> Amnesia:
    return amnesia(vote(net, who, "precommit", A, height=height), vote(net, who, "prevote", B, height=height, round_=2))


@pytest.fixture
def short(ledger_network: Callable[..., Any]) -> Any:
    """Four validators; evidence expires after two heights."""
    net = ledger_network(4)
    net.genesis = replace(net.genesis, policy=replace(net.genesis.policy, evidence_heights=2))
    net.network = net.genesis.network_id()
    net.validators = net.genesis.registry().validators()
    return net


async def busy(net: Any, *ledgers: Any, by: int = 0) -> None:
    """One more block: of a new record."""
    record = net.record(f"block {ledgers[0].height}")
    for ledger in ledgers:
        net.observe_all(ledger, record)
    height = ledgers[0].height
    while ledgers[0].height == height:
        await net.decide(*ledgers, by=by)


async def test_evidence_makes_a_block_and_every_ledger_knows_the_offender(net, autojump_clock, tmp_path) -> None:
    ledger, other = await net.open(tmp_path / "ledger"), await net.open(by=1)
    assert await ledger.due_in() is None
    evidence = forgetful(net, 2)
    assert ledger.add_evidence(evidence)
    assert not ledger.add_evidence(evidence), "known"
    assert await ledger.due_in() == 0.0
    decided = await net.decide(ledger, other)
    assert [decode_entry(data) for data in decided.block.body.entries] == [EvidenceEntry(evidence=evidence)]
    row = OffenceRow(net.keys[2].address, Epoch(0), "amnesia", Height(1), Height(1))
    for each in (ledger, other):
        assert (await each.summary()).offences == (row,)
        assert each.registry.get(net.keys[2].address).weight == 0
        assert decided.block.header.ends_epoch, "it validated until then"
        assert each.validators.epoch == 1
        assert set(each.validators.members) == set(net.validators.members) - {net.keys[2].address}
    assert not ledger.add_evidence(doubled(net, 2)), "convicted in this epoch already"
    await net.run_until_quiet(ledger, other)
    assert [row.records for row in (await ledger.summary()).blocks] == [0] * ledger.height
    assert ledger.height <= 3, "the evidence, its anchor, the anchor's certificate"
    await ledger.close()
    again = await net.open(tmp_path / "ledger")
    assert (await again.summary()).offences == (row,)
    assert not again.add_evidence(evidence)
    assert net.shown(await again.summary()) == net.shown(await other.summary())


async def test_a_block_convicts_in_order_and_within_bounds(net, autojump_clock) -> None:
    ledger, other = await net.open(), await net.open(by=1)
    for who in (3, 0, 2):
        assert ledger.add_evidence(doubled(net, who))
    body = (await net.propose(ledger)).body
    found = [decode_entry(data).evidence.first.validator for data in body.entries]
    assert found == sorted(net.keys[who].address for who in (3, 0, 2))
    await net.decide(ledger, other)
    assert [row.validator for row in (await ledger.summary()).offences] == found[::-1]
    assert [row.validator for row in (await ledger.summary(rows=1)).offences] == found[-1:]


def _entries(*evidence: Evidence) -> dict[str, Any]:
    return {"entries": tuple(map(evidence_entry, evidence))}


def forged(net: Any) -> Evidence:
    real = doubled(net, 2)
    return double_vote(real.first, replace(real.second, signature=bytes(65)))


def kept(net: Any) -> Evidence:
    lock = Choice(round=Round(0), value=A)
    return amnesia(vote(net, 2, "precommit", A), vote(net, 2, "prevote", A, round_=2, lock=lock))


def strangers(net: Any) -> Evidence:
    return replace(doubled(net, 2), first=replace(doubled(net, 2).first, validator=net.generator.address))


BAD: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "no contradiction": (lambda n: _entries(kept(n)), "agrees with the precommit"),
    "forged": (lambda n: _entries(forged(n)), "signature"),
    "other order": (
        lambda n: _entries(DoubleVote(first=doubled(n, 2).second, second=doubled(n, 2).first)),
        "canonical order",
    ),
    "a later height's": (lambda n: _entries(doubled(n, 2, height=4)), "evidence of height 4 in block 3"),
    "another epoch's": (lambda n: _entries(doubled(n, 2, epoch=2)), "epoch 2, which has no validators"),
    "the convicted one's": (lambda n: _entries(doubled(n, 1)), "is convicted in epoch 0 already"),
    "twice": (lambda n: _entries(forgetful(n, 2), doubled(n, 2)), "ascending by whom"),
    "descending": (lambda n: _entries(doubled(n, 3), doubled(n, 2)), "ascending by whom"),
    "before a checkpoint": (
        lambda n: {"entries": (evidence_entry(doubled(n, 2)), checkpoint_entry(n.checkpoint(n.generator)))},
        "ascending by whom",
    ),
    "batches in other order": (
        lambda n: _entries(BatchConflict(first=observed_twice(n, 2).second, second=observed_twice(n, 2).first)),
        "canonical order",
    ),
    "innocent batches": (
        lambda n: _entries(conflict_of(*(n.batch(n.keys[2], n.record(each), number=ord(each))[0] for each in "ab"))),
        "do not contradict",
    ),
    "no validator's": (lambda n: _entries(strangers(n)), "not a validator of epoch 0"),
}


def block_of(net: Any, ledger: Any, body: Body) -> Block:
    """A block whose header is right for `body`, whatever that is."""
    state = ledger._state
    time_ms = state.rules.time_after(state.parent, net.clock.now_ms())
    header = state._header(
        body, state.rules.outcome(state.parent, body, net.keys[0].address, time_ms), net.keys[0].address, time_ms
    )
    return Block(header=header, body=body)


@pytest.mark.parametrize("case", BAD)
async def test_a_block_with_bad_evidence_is_refused(net, autojump_clock, case) -> None:
    ledger = await net.open()
    assert ledger.add_evidence(doubled(net, 1))
    await net.decide(ledger)
    await net.decide(ledger)
    assert ledger.height == 2
    make, reason = BAD[case]
    with pytest.raises(BlockError, match=reason):
        await ledger.validate(block_of(net, ledger, Body(**make(net))), net.clock.now_ms(), Round(0))
    for good in (doubled(net, 2), observed_twice(net, 2)):
        await ledger.validate(block_of(net, ledger, Body(**_entries(good))), net.clock.now_ms(), Round(0))


async def test_too_much_evidence_for_a_block_waits(ledger_network, autojump_clock) -> None:
    net = ledger_network(MAX_BLOCK_EVIDENCE + 3)
    honest = MAX_BLOCK_EVIDENCE + 2
    ledger = await net.open(by=honest)
    for who in range(honest):
        assert ledger.add_evidence(doubled(net, who))
    first = (await net.decide(ledger, by=honest)).block
    assert len(first.body.entries) == MAX_BLOCK_EVIDENCE
    assert await ledger.due_in() == 0.0
    assert len((await net.decide(ledger, by=honest)).block.body.entries) == 2
    fresh = await net.open()
    much = sorted((doubled(net, who) for who in range(MAX_BLOCK_EVIDENCE + 1)), key=lambda each: each.first.validator)
    with pytest.raises(BlockError, match="more than 16 entries of evidence"):
        await fresh.validate(block_of(net, fresh, Body(**_entries(*much))), net.clock.now_ms(), Round(0))


async def test_evidence_expires(short, autojump_clock) -> None:
    net = short
    ledger = await net.open()
    await busy(net, ledger)
    assert ledger.add_evidence(doubled(net, 2))
    # A block without it: another proposer may not have it yet.
    other = await net.open(by=1)
    await other.commit((await ledger.decided(Height(1), 1))[0])
    for _ in range(2):
        before = other.height
        await busy(net, other, by=1)
        for decided in await other.decided(Height(before + 1), 9):
            await ledger.commit(decided)
    assert ledger.height >= 3
    assert ledger._pending.evidence() == 0, "the next block may not hold it any more"
    with pytest.raises(EvidenceError, match="expires after 2 heights"):
        ledger.add_evidence(doubled(net, 2))
    assert not ledger.add_evidence(doubled(net, 2, height=ledger.height + 2)), "of a height that is yet to come"
    assert ledger.add_evidence(doubled(net, 2, height=ledger.height + 1))


def observed_twice(net: Any, who: int, **more: Any) -> BatchConflict:
    """Two batches of one number."""
    return conflict_of(*(net.batch(net.keys[who], net.record(text), number=1, **more)[0] for text in ("a", "b")))


async def test_two_batches_convict_and_every_ledger_holds_the_same_bytes(net, autojump_clock, tmp_path) -> None:
    ledger, other = await net.open(tmp_path / "ledger"), await net.open(by=1)
    evidence = observed_twice(net, 2)
    assert ledger.add_evidence(evidence)
    assert ledger.observations.standings()[net.keys[2].address].equivocated
    assert not ledger.add_evidence(evidence)
    decided = await net.decide(ledger, other)
    assert [decode_entry(data) for data in decided.block.body.entries] == [EvidenceEntry(evidence=evidence)]
    row = OffenceRow(net.keys[2].address, Epoch(0), "double_batch", None, Height(1))
    for each in (ledger, other):
        assert (await each.summary()).offences == (row,)
        assert net.keys[2].address not in each.validators
    await ledger.close()
    assert (await (await net.open(tmp_path / "ledger")).summary()).offences == (row,)


async def test_a_batch_in_a_block_convicts_whoever_showed_us_another(net, autojump_clock) -> None:
    """Each half of the validators sees one of two batches, and agrees on a block by itself."""
    ledger, other = await net.open(), await net.open(by=1)
    record, liar = net.record("a"), net.keys[2]
    shown, reveal = net.batch(liar, record, number=1)
    hidden, _ = net.batch(liar, record, number=1, ppm=1)
    accused: list[Evidence] = []
    other.on_offence(accused.append)
    other.observations.add_commit(hidden)
    said = [(shown, reveal), *(net.batch(key, record, number=1) for key in net.keys[:2])]
    for commit, _ in said:
        assert ledger.observations.add_commit(commit)
    for _, rows in said:
        assert ledger.observations.add_reveal(rows)
    await trio.sleep(1)
    decided = await net.decide(ledger, other)
    assert liar.address in [each.signed.commit.validator for each in decided.block.body.batches]
    assert accused == [conflict_of(shown, hidden)]
    assert await other.due_in() == 0.0
    convicting = await net.decide(other, ledger, by=1)
    assert [decode_entry(data) for data in convicting.block.body.entries] == [EvidenceEntry(evidence=accused[0])]
    assert liar.address not in ledger.validators


async def test_evidence_of_batches_expires_with_its_epoch(short, autojump_clock) -> None:
    net = short
    ledger = await net.open()
    for _ in range(3):
        await busy(net, ledger)
    late, too_late = observed_twice(net, 2), observed_twice(net, 3)
    assert ledger.add_evidence(doubled(net, 1, height=ledger.height))
    ended = (await net.decide(ledger)).block.header
    assert ended.ends_epoch
    assert ledger.add_evidence(late), "its epoch has just ended"
    assert ledger._pending.evidence() == 1
    while ledger.height < ended.height + 2:
        await net.decide(ledger)
    with pytest.raises(EvidenceError, match="expires after 2 heights"):
        ledger.add_evidence(too_late)
    with pytest.raises(EvidenceError, match="which has no validators"):
        ledger.add_evidence(observed_twice(net, 2, epoch=7))


async def test_what_proves_nothing_is_said(net, autojump_clock) -> None:
    ledger = await net.open()
    with pytest.raises(EvidenceError):
        ledger.add_evidence(replace(forgetful(net, 2), prevote=vote(net, 3, "prevote", B, round_=2)))
    with pytest.raises(SignatureError):
        ledger.add_evidence(replace(doubled(net, 2), first=replace(doubled(net, 2).first, signature=bytes(65))))
    assert await ledger.due_in() is None
