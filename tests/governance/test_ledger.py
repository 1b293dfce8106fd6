"""The ledger driven by hand: keys propose, validate, certify and commit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.errors import ObservationError
from nsllm.consensus.registry import admit
from nsllm.crypto import keccak256
from nsllm.errors import SignatureError
from nsllm.governance import ledger as ledger_module
from nsllm.governance.errors import ChainRefusal
from nsllm.governance.pending import BUSY_RECORDS, GATHER_S
from nsllm.ids import Epoch


async def test_a_record_is_due_when_all_that_committed_have_opened_or_after_a_wait(net, autojump_clock) -> None:
    ledger = await net.open()
    assert await ledger.due_in() is None
    signed = net.record("first")
    batches = [net.batch(key, signed) for key in net.keys]
    for commit, _ in batches:
        assert ledger.observations.add_commit(commit)
    for _, reveal in batches[:2]:
        assert ledger.observations.add_reveal(reveal)
    assert await ledger.due_in() is None
    assert ledger.observations.add_reveal(batches[2][1])
    assert await ledger.due_in() == pytest.approx(0.3)
    assert not (await net.propose(ledger)).body.batches
    await trio.sleep(0.1)
    assert await ledger.due_in() == pytest.approx(0.2)
    assert ledger.observations.add_reveal(batches[3][1])
    assert await ledger.due_in() == 0.0
    decided = await net.decide(ledger)
    assert len(decided.block.body.batches) == 4
    assert decided.block.body.records == (signed.record.digest(),)
    assert (ledger.height, ledger.log_size) == (1, 1)
    assert not ledger.observations.add_commit(batches[3][0])
    assert not ledger.observations.add_reveal(batches[3][1])
    assert len((await ledger.summary()).blocks) == 1


async def test_what_is_due_waits_a_moment_for_many_others_that_will_be(net, autojump_clock) -> None:
    ledger, keys = await net.open(), net.keys
    first, *others = [net.record(str(number)) for number in range(BUSY_RECORDS + 1)]
    batches = [net.batch(key, *others) for key in keys]
    for commit, _ in batches[:2]:
        ledger.observations.add_commit(commit)
    for key in keys:
        net.observe(ledger, key, first)
    assert await ledger.due_in() == 0.0, "two of four are not enough: these others may never come"
    ledger.observations.add_commit(batches[2][0])
    assert await ledger.due_in() == pytest.approx(GATHER_S)
    await trio.sleep(GATHER_S)
    assert await ledger.due_in() == 0.0
    await net.decide(ledger)
    ledger.observations.add_commit(batches[3][0])
    for _, reveal in batches:
        ledger.observations.add_reveal(reveal)
    assert await ledger.due_in() == 0.0, "all are here"
    assert len((await net.decide(ledger)).block.body.records) == BUSY_RECORDS


async def test_a_certified_record_holds_and_wakes_who_waits_for_it(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("first")
    found = []
    seen: list[int] = []
    unsubscribe = ledger.subscribe(lambda decided: seen.append(decided.block.header.height))

    async def wait() -> None:
        found.append(await ledger.proofs.wait_certified(signed))

    with trio.move_on_after(1):
        await ledger.proofs.wait_certified(signed)
    assert not ledger.proofs.awaited
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        net.observe_all(ledger, signed)
        await net.decide(ledger)
    assert found[0] == found[1]
    found[0].check(net.network, net.validators)
    assert ledger.is_settled(signed.record.digest())
    assert not ledger.proofs.awaited
    unsubscribe()
    await net.run_until_quiet(ledger)
    assert seen == [1]


async def test_blocks_go_on_only_until_the_last_anchor_is_settled(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("first")
    net.observe_all(ledger, signed)
    blocks = await net.run_until_quiet(ledger)
    kinds = [(len(b.block.body.batches), len(b.block.body.transactions)) for b in blocks]
    assert kinds == [(4, 0), (0, 1), (0, 0)]
    proof = await ledger.proofs.of(signed.record.digest())
    assert proof is not None
    assert proof.anchor is not None
    assert proof.anchor.certificate == blocks[2].certificate
    assert proof.anchor.anchored == blocks[0].block.header
    anchors = (await ledger.summary()).anchors
    assert [(a.log_size, a.transaction_height, a.proof_height) for a in anchors] == [(1, 2, 3)]
    assert anchors[0].transaction_hash == keccak256(blocks[1].block.body.transactions[0])
    assert [anchor.log_size for anchor in (await ledger.summary()).anchors] == [1]


async def test_an_anchor_a_second_at_most(net, autojump_clock) -> None:
    ledger = await net.open()
    blocks = []
    for i in range(20):
        net.observe_all(ledger, net.record(f"r{i}"))
        while await ledger.due_in() == 0.0:
            blocks.append(await net.decide(ledger))
        await trio.sleep(0.25)
    blocks += await net.run_until_quiet(ledger)
    times = [b.block.header.time_ms for b in blocks if b.block.body.transactions]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps
    assert min(gaps) >= 1000
    assert ledger._state.anchored_size == ledger.log_size == 20
    for i in range(20):
        assert (await ledger.proofs.of(net.record(f"r{i}").record.digest())).anchor is not None


async def test_ledgers_that_take_the_same_blocks_agree(net, autojump_clock, tmp_path) -> None:
    ledgers = [await net.open(by=i) for i in range(3)] + [await net.open(tmp_path / "l.sqlite", by=3)]
    for i in range(6):
        records = [net.record(f"r{i}.{k}") for k in range(3)]
        proposer = i % 4
        net.observe_all(ledgers[proposer], *(records if i % 2 else reversed(records)))
        others = [ledger for k, ledger in enumerate(ledgers) if k != proposer]
        await net.decide(ledgers[proposer], *others, by=proposer)
        await trio.sleep(0.7)
    await net.run_until_quiet(*ledgers)
    summaries = [net.shown(await ledger.summary()) for ledger in ledgers]
    assert all(summary == summaries[0] for summary in summaries)
    assert len({ledger._state._chain.state_root() for ledger in ledgers}) == 1
    assert summaries[0][1] == 18


async def test_commits_and_openings_are_checked_when_they_come(net, autojump_clock) -> None:
    ledger = await net.open()
    first = net.record("first")
    good, reveal = net.batch(net.keys[0], first)
    with pytest.raises(ObservationError, match="not a validator"):
        ledger.observations.add_commit(net.batch(net.stranger, first)[0])
    with pytest.raises(ObservationError, match="rubric"):
        ledger.observations.add_commit(net.batch(net.keys[0], first, rubric=keccak256(b"x"))[0])
    with pytest.raises(ObservationError, match="epoch 1"):
        ledger.observations.add_commit(net.batch(net.keys[0], first, epoch=Epoch(1))[0])
    with pytest.raises(SignatureError):
        ledger.observations.add_commit(replace(good, signature=net.batch(net.keys[1], first)[0].signature))
    assert not ledger.observations.add_reveal(reveal), "there is no commit yet"
    assert ledger.observations.add_commit(good)
    assert not ledger.observations.add_commit(good)
    lie = net.batch(net.keys[0], first, number=good.commit.number, ppm=1)[1]
    with pytest.raises(ObservationError, match="not what was committed to"):
        ledger.observations.add_reveal(lie)
    assert ledger.observations.add_reveal(reveal)
    assert not ledger.observations.add_reveal(reveal)


async def test_observations_of_what_was_scored_long_ago_make_no_block(
    net, autojump_clock, tmp_path, monkeypatch
) -> None:
    ledger = await net.open(tmp_path / "ledger.sqlite")
    net.observe_all(ledger, net.record("old"))
    await net.decide(ledger)
    net.observe_all(ledger, net.record("new"))
    await net.run_until_quiet(ledger)
    await ledger.close()
    monkeypatch.setattr("nsllm.governance.ledger.RECENT_RECORDS", 1)
    ledger = await net.open(tmp_path / "ledger.sqlite")
    assert not ledger.is_settled(net.record("old").record.digest())
    assert ledger.is_settled(net.record("new").record.digest())
    net.observe_all(ledger, net.record("old"))
    assert await ledger.due_in() is None
    assert (await ledger.summary()).pending == 0
    assert await ledger.proofs.scores(net.record("old").record.digest()) is not None


async def test_a_proposal_of_very_much_stays_within_the_bounds(ledger_network, autojump_clock) -> None:
    net = ledger_network(1)
    ledger = await net.open()
    net.observe_all(ledger, *(net.record(f"r{i}") for i in range(1200)))
    blocks = await net.run_until_quiet(ledger)
    counts = [len(b.block.body.records) for b in blocks if b.block.body.records]
    assert counts == [1024, 176]


async def test_an_admitted_member_s_records_are_scored_once_a_block_admits_it(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("from outside", net.stranger)
    net.observe_all(ledger, signed)
    assert await ledger.due_in() is None
    admission = admit(net.generator, net.network, net.member(net.stranger, ("contributor",)))
    assert ledger.add_admission(admission)
    assert not ledger.add_admission(admission)
    assert await ledger.due_in() == 0.0
    await net.decide(ledger)
    assert ledger.log_size == 2
    assert ledger.registry.get(net.stranger.address) == admission.member
    assert await ledger.proofs.scores(signed.record.digest()) is not None
    assert not ledger.add_admission(admission)


async def test_a_checkpoint_rides_along_at_most_once_a_minute(net, autojump_clock) -> None:
    ledger = await net.open()
    assert not ledger.add_checkpoint(net.checkpoint(net.stranger))
    assert ledger.add_checkpoint(net.checkpoint(net.generator, 1))
    assert await ledger.due_in() is None
    sizes = []
    for i in range(4):
        net.observe_all(ledger, net.record(f"r{i}"))
        await net.decide(ledger)
        sizes.append(ledger.log_size)
        assert not ledger.add_checkpoint(net.checkpoint(net.generator, 1))
        ledger.add_checkpoint(net.checkpoint(net.generator, 2 + i))
        await trio.sleep(31)
    assert sizes == [2, 3, 5, 6]


async def test_an_anchor_that_the_contract_refuses_is_left_out_and_tried_less_often(
    net, autojump_clock, monkeypatch
) -> None:
    ledger = await net.open()
    net.observe_all(ledger, net.record("first"))
    await net.decide(ledger)

    def refuse(*args: object) -> None:
        raise ChainRefusal("no")

    with monkeypatch.context() as patch:
        patch.setattr(ledger._state._chain, "check", refuse)
        waits = []
        for _ in range(3):
            assert (await net.propose(ledger)).body.transactions == ()
            waits.append(round(await ledger.due_in()))
            await trio.sleep(await ledger.due_in() + 0.01)
    assert waits == [2, 4, 8]
    await net.run_until_quiet(ledger)
    assert ledger._state.anchored_size == 1


@pytest.mark.parametrize(("unpaced", "deliveries_per_s", "wait_s"), [(5, 1, 0.0), (4, 100, 2.0), (4, 1, 5.0)])
async def test_proposers_of_large_networks_leave_time_between_blocks(
    net, autojump_clock, monkeypatch, unpaced: int, deliveries_per_s: int, wait_s: float
) -> None:
    """Five members: none in a small network, two seconds in a larger one, more where copies would be too many."""
    monkeypatch.setattr(ledger_module, "UNPACED_MEMBERS", unpaced)
    monkeypatch.setattr(ledger_module, "DELIVERIES_PER_S", deliveries_per_s)
    ledger = await net.open()
    await trio.sleep(1)
    net.observe_all(ledger, net.record("first"))
    block = await net.decide(ledger)
    assert len(ledger.registry.members()) == 5
    assert block.block.header.time_ms == net.clock.now_ms()
    net.observe_all(ledger, net.record("second"))
    assert await ledger.due_in() == pytest.approx(wait_s)
