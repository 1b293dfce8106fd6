"""Commit, then open: four committers over real ledgers and logs, on virtual time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.batch import MAX_BATCH_RECORDS, BatchReveal, Row, SignedCommit, pack_rows, sign_commit
from nsllm.consensus.batch_conflict import BatchConflict
from nsllm.consensus.errors import BatchEquivocationError, EvidenceError, ObservationError
from nsllm.consensus.observation import Subject, pack_subjects
from nsllm.consensus.observation_message import (
    MAX_OBSERVATION_BYTES,
    Commit,
    Reveal,
    decode_observation,
    encode_observation,
)
from nsllm.crypto import keccak256
from nsllm.errors import EncodingError, PeerFault
from nsllm.governance.batch_log import BatchLog
from nsllm.governance.errors import StorageError
from nsllm.governance.ledger import Ledger
from nsllm.governance.log_entry import EvidenceEntry, decode_entry
from nsllm.governance.motion import ChangePolicy, GovernanceTransaction, Motion, approve
from nsllm.governance.record_case import WAIT_FOR_ALL_S
from nsllm.ids import Address, Digest, Height, TimeMs
from nsllm.node import committer as module
from nsllm.node import own_batches
from nsllm.node.committer import Committer
from nsllm.node.events import EventBus
from nsllm.node.views import PeerEvent
from nsllm.simulations.mutants.made import certify

DELAY_S = 0.01


@dataclass
class Validator:
    address: Address
    ledger: Ledger
    log: BatchLog
    committer: Committer
    scope: trio.CancelScope
    told: list[PeerEvent]
    dues: int = 0


@dataclass
class Network:
    """Four validators; what they send arrives `DELAY_S` later, unless `lost` says otherwise."""

    cast: object
    nursery: trio.Nursery
    folder: Path
    running: dict[int, Validator] = field(default_factory=dict)
    sent: list[tuple[float, int, Address, object]] = field(default_factory=list)
    faults: list[tuple[Address, PeerFault]] = field(default_factory=list)
    lost: Callable[[int, Address, object], bool] = lambda _by, _to, _body: False

    async def start(self, number: int) -> Validator:
        identity = self.cast.identities[number]
        bus = EventBus(self.cast.context.clock)
        told: list[PeerEvent] = []
        bus.tap(told.append)
        context = dataclasses.replace(self.cast.context, key=identity.member, events=bus)
        ledger = await Ledger.open(
            None, context.genesis, clock=context.clock, offload=context.offload, key=identity.member
        )
        log = BatchLog.open(self.folder / f"{number}.sqlite", context.network_id, identity.address, now_ms=TimeMs(0))

        def due() -> None:
            self.running[number].dues += 1

        committer = Committer(
            context=context,
            ledger=ledger,
            batches=log,
            share=lambda to, payload: self._share(number, to, payload),
            due=due,
        )
        validator = Validator(identity.address, ledger, log, committer, trio.CancelScope(), told)
        self.running[number] = validator
        self.nursery.start_soon(self._run, validator)
        return validator

    async def _run(self, validator: Validator) -> None:
        with validator.scope:
            await validator.committer.run()

    def stop(self, number: int) -> None:
        validator = self.running.pop(number)
        validator.scope.cancel()
        validator.log.close()

    def _share(self, by: int, to: Address, payload: bytes) -> None:
        body = decode_observation(payload)
        self.sent.append((trio.current_time(), by, to, body))
        if not self.lost(by, to, body):
            self.nursery.start_soon(self._deliver, self.running[by].address, to, payload)

    async def _deliver(self, sender: Address, to: Address, payload: bytes) -> None:
        await trio.sleep(DELAY_S)
        for validator in self.running.values():
            if validator.address == to:
                try:
                    validator.committer.hear(sender, payload)
                except PeerFault as error:
                    self.faults.append((sender, error))

    def observe(self, subject: Subject, *numbers: int, ppm: int = 500_000) -> None:
        size = len(self.cast.context.policy.rubric.dimensions)
        for number in numbers or self.running:
            self.running[number].committer.observed(subject, (ppm,) * size)

    def commits(self, by: int) -> list[SignedCommit]:
        """Distinct commits that a validator sent, in order."""
        found = [body.signed for _, who, _, body in self.sent if who == by and isinstance(body, Commit)]
        return list(dict.fromkeys(found))

    async def ready(self, number: int, records: int, within_s: float = 5.0) -> float:
        """When a block of so many records was due at a validator."""
        with trio.fail_after(within_s):
            while True:
                ledger = self.running[number].ledger
                if await ledger.due_in() == 0.0 and len(self._due(ledger)) >= records:
                    return trio.current_time()
                await trio.sleep(0.001)

    def _due(self, ledger: Ledger):
        return ledger._pending.draft(trio.current_time(), self.cast.context.clock.now_ms()).records


def subject(cast, name: str) -> Subject:
    return Subject(Digest(keccak256(name.encode())), cast.identities[0].address, Digest(keccak256(b"key")))


@pytest.fixture
async def network(cast, autojump_clock, nursery, tmp_path) -> Network:
    network = Network(cast, nursery, tmp_path)
    for number in range(4):
        await network.start(number)
    return network


async def test_a_lone_record_is_due_after_two_message_delays_and_no_timer(cast, autojump_clock, network) -> None:
    began = trio.current_time()
    network.observe(subject(cast, "a"))
    for number in range(4):
        assert await network.ready(number, 1) - began < 2 * DELAY_S + 0.01
    assert [len(network.commits(number)) for number in range(4)] == [1] * 4
    block = await network.running[0].ledger.propose(1, cast.context.clock.now_ms(), network.running[0].address)
    assert len(block.body.batches) == 4
    assert all(validator.dues for validator in network.running.values())


async def test_no_score_is_shown_before_enough_have_committed(cast, autojump_clock, network) -> None:
    network.observe(subject(cast, "a"), 0, 1)
    await trio.sleep(1)
    assert not [body for *_, body in network.sent if isinstance(body, Reveal)]
    network.observe(subject(cast, "a"), 2, 3)
    await network.ready(0, 1)
    first_reveal = min(at for at, *_, body in network.sent if isinstance(body, Reveal))
    assert first_reveal >= 1 + DELAY_S


async def test_with_one_validator_away_rows_are_shown_after_a_wait(cast, autojump_clock, network) -> None:
    network.stop(3)
    began = trio.current_time()
    network.observe(subject(cast, "a"))
    assert await network.ready(0, 1) - began == pytest.approx(WAIT_FOR_ALL_S + 2 * DELAY_S, abs=0.02)


async def test_an_abstention_is_told_and_not_waited_for(cast, autojump_clock, network) -> None:
    about = subject(cast, "a")
    began = trio.current_time()
    network.observe(about, 0, 1, 2)
    network.running[3].committer.abstained(about.record, "the rubric's encoder is 02…")
    assert await network.ready(0, 1) - began < 2 * DELAY_S + 0.01
    standing = network.running[0].ledger.observations.standings()[network.running[3].address]
    assert (standing.abstained, standing.reason) == (1, "the rubric's encoder is 02?")


async def test_what_comes_while_a_batch_is_written_goes_together(cast, autojump_clock, network) -> None:
    subjects = [subject(cast, str(i)) for i in range(3 * MAX_BATCH_RECORDS)]
    for about in subjects:
        network.observe(about)
    await network.ready(0, len(subjects))
    sizes = [len(signed.commit.record_digests) for signed in network.commits(0)]
    assert sizes == [MAX_BATCH_RECORDS] * 3
    numbers = [signed.commit.number for signed in network.commits(0)]
    assert numbers == sorted(set(numbers))
    assert not network.faults


async def test_a_row_waits_a_moment_for_others_that_are_being_scored(cast, autojump_clock, network) -> None:
    committer, size = network.running[0].committer, len(cast.context.policy.rubric.dimensions)
    for i in range(3):
        committer.observed(subject(cast, str(i)), (1,) * size, more=i < 2)
        await trio.sleep(0.01)
    await trio.sleep(0.01)
    assert [len(signed.commit.record_digests) for signed in network.commits(0)] == [3]
    began = trio.current_time()
    committer.observed(subject(cast, "stuck"), (1,) * size, more=True)
    await trio.sleep(module.GATHER_S + 0.01)
    sent = [at for at, who, _, body in network.sent if who == 0 and isinstance(body, Commit)]
    assert max(sent) - began == pytest.approx(module.GATHER_S, abs=0.005)


async def test_under_load_batches_are_filled_and_rows_opened_together(cast, autojump_clock, network) -> None:
    for i in range(module.BUSY_RECORDS):
        network.observe(subject(cast, str(i)))
    await network.ready(0, module.BUSY_RECORDS)
    began = trio.current_time()
    for i in range(4):
        network.observe(subject(cast, f"more {i}"))
        await trio.sleep(module.FILL_S / 10)
    ready = await network.ready(0, module.BUSY_RECORDS + 4)
    assert [len(signed.commit.record_digests) for signed in network.commits(0)] == [module.BUSY_RECORDS, 4]
    reveals = {body for at, who, _, body in network.sent if who == 0 and at > began and isinstance(body, Reveal)}
    assert len(reveals) == 1
    assert ready - began < module.FILL_S + module.OPEN_TOGETHER_S + 3 * DELAY_S


async def test_records_that_nobody_else_observes_make_nobody_busy(cast, autojump_clock, network) -> None:
    for i in range(module.BUSY_RECORDS):
        network.observe(subject(cast, f"nobody else's {i}"), 0)
    await trio.sleep(2 * own_batches.RESEND_S)
    began = trio.current_time()
    network.observe(subject(cast, "lone"))
    assert await network.ready(0, 1) - began < 2 * DELAY_S + 0.01


async def test_lost_messages_are_sent_again_until_a_block_has_the_records(cast, autojump_clock, network) -> None:
    network.lost = lambda _by, _to, _body: trio.current_time() < 3.0
    about = subject(cast, "a")
    network.observe(about)
    await network.ready(0, 1, within_s=30)
    await trio.sleep(60)
    times = sorted({round(at) for at, by, *_, body in network.sent if by == 0 and isinstance(body, Commit)})
    assert times == [0, 2, 6, 14, 24, 34, 44, 54, 64][: len(times)]
    for validator in network.running.values():
        validator.committer.settled([about.record])
        assert not validator.committer.holds(about.record)
    before = len(network.sent)
    await trio.sleep(60)
    assert len(network.sent) == before


async def test_what_others_settled_while_our_disk_was_busy_is_not_said(
    cast, autojump_clock, network, monkeypatch
) -> None:
    late, timely, validator = subject(cast, "late"), subject(cast, "in time"), network.running[0]
    monkeypatch.setattr(validator.ledger, "is_settled", lambda record: record == late.record)
    network.observe(late, 0)
    await trio.sleep(1)
    assert not validator.committer.holds(late.record)
    network.observe(timely, 0)
    await trio.sleep(20)
    said = {record for signed in network.commits(0) for record in signed.commit.record_digests}
    assert said == {timely.record}


async def test_what_goes_out_again_at_once_is_bounded(cast, autojump_clock, network, monkeypatch) -> None:
    monkeypatch.setattr(own_batches, "RESEND_AT_ONCE", 2)
    for i in range(8):
        network.observe(subject(cast, str(i)), 0)
        await trio.sleep(0.1)
    assert len(network.commits(0)) == 8
    before = len(network.sent)
    await trio.sleep(2 * own_batches.RESEND_S)
    assert len(network.sent) - before <= 2 * 2 * 3
    await trio.sleep(60)
    again = [signed.commit.number for at, *_, body in network.sent if at > 1 for signed in [body.signed]]
    assert set(again) == {signed.commit.number for signed in network.commits(0)}


async def test_after_a_restart_the_same_commits_go_out_and_no_others(cast, autojump_clock, network) -> None:
    """Every validator is killed after its commit and before any row is shown; other integers change nothing."""
    network.lost = lambda _by, _to, _body: True
    about = subject(cast, "a")
    network.observe(about)
    await trio.sleep(1)
    before = {number: network.commits(number) for number in range(4)}
    for number in range(4):
        network.stop(number)
    network.lost = lambda _by, _to, _body: False
    for number in range(4):
        await network.start(number)
    await trio.sleep(0.1)
    network.observe(about, ppm=9)
    network.observe(subject(cast, "b"))
    await network.ready(0, 2, within_s=30)
    for number in range(4):
        again = network.commits(number)
        assert again[:1] == before[number]
        assert len(again) == 2
        assert again[0].commit.number < again[1].commit.number
        assert again[1].commit.record_digests == (subject(cast, "b").record,)
    assert not network.faults


async def test_a_full_disk_sends_nothing_and_is_tried_again(cast, autojump_clock, network, monkeypatch) -> None:
    log = network.running[0].log
    put = log.put
    monkeypatch.setattr(log, "put", lambda *_: (_ for _ in ()).throw(StorageError("no space")))
    network.observe(subject(cast, "a"))
    network.running[0].committer.abstained(subject(cast, "b").record, "no model")
    await trio.sleep(1.5)
    assert network.commits(0) == []
    assert "observations_failed" in [event.kind for event in network.running[0].told]
    monkeypatch.setattr(log, "put", put)
    await trio.sleep(2)
    [signed] = network.commits(0)
    assert signed.commit.record_digests == (subject(cast, "a").record,)
    assert signed.commit.abstained == {subject(cast, "b").record}


async def test_an_equivocator_is_left_out_and_costs_nobody_else(cast, autojump_clock, network) -> None:
    """One validator hears both batches, and the next block convicts."""
    network.observe(subject(cast, "a"))
    await network.ready(0, 1)
    [signed] = network.commits(3)
    other = sign_commit(
        cast.identities[3].member, cast.context.network_id, replace(signed.commit, commitments=bytes(32))
    )
    finder, liar = network.running[1], network.running[3].address
    accused: list[BatchConflict] = []
    finder.ledger.on_offence(accused.append)
    with pytest.raises(BatchEquivocationError):
        finder.committer.hear(liar, encode_observation(Commit(signed=other)))
    assert [conflict.offender for conflict in accused] == [liar]
    assert finder.ledger.observations.standings()[liar].equivocated
    assert await finder.ledger.due_in() == 0.0
    block = await finder.ledger.propose(1, cast.context.clock.now_ms(), finder.address)
    assert liar not in [each.signed.commit.validator for each in block.body.batches]
    assert [decode_entry(data) for data in block.body.entries] == [EvidenceEntry(evidence=accused[0])]
    with pytest.raises(EvidenceError):
        network.running[0].ledger.add_evidence(replace(accused[0], second=accused[0].first))
    assert network.running[0].ledger.add_evidence(accused[0]), "the same bytes convict everywhere"
    assert network.running[0].ledger.observations.standings()[liar].equivocated


async def test_rows_without_a_commit_and_late_commits_are_reported(cast, autojump_clock, network) -> None:
    """Validator 3 waits until the others have shown theirs, shows a row, and only then commits."""
    about = subject(cast, "a")
    network.lost = lambda by, _to, _body: by == 3
    network.observe(about)
    await network.ready(0, 1)
    await trio.sleep(1)
    [mine] = network.commits(3)
    rows = pack_rows([Row(0, bytes(16), (1,) * len(cast.context.policy.rubric.dimensions))])
    epoch, number = mine.commit.epoch, mine.commit.number
    copied = BatchReveal(
        validator=mine.commit.validator, epoch=epoch, number=number, rows=rows, subjects=pack_subjects([about])
    )
    hears = network.running[0]
    hears.committer.hear(mine.commit.validator, encode_observation(Reveal(reveals=(copied,))))
    hears.committer.hear(mine.commit.validator, encode_observation(Commit(signed=mine)))
    told = [event.fields for event in hears.told if event.kind == "observation_suspect"]
    assert [(fields["late"], fields["uncommitted"]) for fields in told] == [(0, 1), (1, 0)]
    block = await hears.ledger.propose(1, cast.context.clock.now_ms(), hears.address)
    assert mine.commit.validator not in [each.signed.commit.validator for each in block.body.batches]


async def test_only_its_validator_may_bring_a_batch_and_junk_is_refused(cast, autojump_clock, network) -> None:
    network.observe(subject(cast, "a"))
    await network.ready(0, 1)
    hear = network.running[0].committer.hear
    commit = encode_observation(Commit(signed=network.commits(2)[0]))
    with pytest.raises(ObservationError, match="sent by"):
        hear(network.running[1].address, commit)
    with pytest.raises(EncodingError):
        hear(network.running[1].address, b"junk")
    with pytest.raises(ObservationError, match="the limit is"):
        hear(network.running[1].address, bytes(MAX_OBSERVATION_BYTES + 1))
    hear(network.running[2].address, commit)


async def test_who_sends_too_much_is_not_read_for_a_while(cast, autojump_clock, network, monkeypatch) -> None:
    hear = network.running[0].committer.hear
    read = []
    monkeypatch.setattr(module, "decode_observation", lambda payload: read.append(payload) or 1 / 0)
    monkeypatch.setattr(module, "MESSAGE_UNITS", 5)
    for _ in range(4):
        with pytest.raises(ZeroDivisionError):
            hear(network.running[1].address, b"junk")
    hear(network.running[1].address, bytes(module.UNIT_BYTES))
    with pytest.raises(ZeroDivisionError):
        hear(network.running[2].address, b"junk")
    assert len(read) == 5
    await trio.sleep(1)
    with pytest.raises(ZeroDivisionError):
        hear(network.running[1].address, b"junk")


async def test_a_record_that_nobody_settles_is_given_up(cast, autojump_clock, network) -> None:
    about = subject(cast, "a")
    network.observe(about, 0)
    await trio.sleep(1)
    assert network.running[0].committer.holds(about.record)
    await trio.sleep(own_batches.GIVE_UP_S + 5)
    assert not network.running[0].committer.holds(about.record)
    network.observe(about, 0, ppm=1)
    await trio.sleep(1)
    assert len(network.commits(0)) == 1, "but never committed to again"


async def decide_policy(network, policy) -> None:
    """A block in which everybody changes the policy: it ends the epoch on all ledgers, and the committers follow."""
    cast, now = network.cast, network.cast.context.clock.now_ms()
    keys = sorted((identity.member for identity in cast.identities[:4]), key=lambda key: key.address)
    motion = Motion(
        action=ChangePolicy(policy=policy), proposer=keys[0].address, created_ms=now, expires_ms=TimeMs(now + 60_000)
    )
    approvals = tuple(approve(key, cast.context.network_id, motion) for key in keys)
    ledgers = [validator.ledger for validator in network.running.values()]
    for ledger in ledgers:
        await ledger.add_motion(GovernanceTransaction(motion=motion, approvals=approvals))
    block = await ledgers[0].propose(Height(ledgers[0].height + 1), now, network.running[0].address)
    decided = certify(keys, block, network=cast.context.network_id)
    for ledger in ledgers:
        await ledger.commit(decided)
    for validator in network.running.values():
        validator.committer.follow()


@pytest.mark.parametrize("rubric", ["the same", "another"])
async def test_what_is_not_settled_is_committed_to_anew_in_the_next_epoch(
    cast, autojump_clock, network, rubric
) -> None:
    """Under the same rubric; under another one the old integers say nothing."""
    about = subject(cast, "a")
    network.observe(about, 0, 1)
    await trio.sleep(1)
    policy = replace(cast.context.policy, reuse_min_ppm=1)
    if rubric == "another":
        policy = replace(policy, rubric=replace(policy.rubric, encoder=keccak256(b"another encoder")))
    await decide_policy(network, policy)
    await trio.sleep(1)
    epochs = [[signed.commit.epoch for signed in network.commits(number)] for number in range(4)]
    assert epochs == ([[0, 1], [0, 1], [], []] if rubric == "the same" else [[0], [0], [], []])
    assert network.running[0].committer.holds(about.record) == (rubric == "the same")
    network.observe(about, *((2, 3) if rubric == "the same" else range(4)))
    await network.ready(3, 1)
    ledger = network.running[0].ledger
    block = await ledger.propose(Height(2), cast.context.clock.now_ms(), network.running[0].address)
    assert {(each.signed.commit.epoch, each.signed.commit.rubric) for each in block.body.batches} == {
        (1, policy.rubric.digest())
    }
    assert block.body.records == (about.record,)
    assert not network.faults
