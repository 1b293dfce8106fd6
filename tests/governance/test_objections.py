"""First proposals that leave observations out, or take copied ones in: refused in round 0, accepted afterwards."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.batch import Excerpt
from nsllm.consensus.block import Block
from nsllm.consensus.errors import OmissionError
from nsllm.consensus.observation import pack_subjects
from nsllm.governance.objections import LEFT_OUT_AFTER_S
from nsllm.governance.record_case import COPIED_AFTER_S, WAIT_FOR_ALL_S
from nsllm.ids import Round


def block_of(net, ledger, records, batches) -> Block:
    """A valid block of validator 0 with these batches, whatever an honest proposer would put in."""
    state = ledger._state
    body = replace(
        net.empty_body,
        subjects=pack_subjects(sorted(map(net.subject, records), key=lambda subject: subject.record)),
        batches=tuple(Excerpt(signed=signed, rows=reveal.rows) for signed, reveal in batches),
    )
    time_ms = state.rules.time_after(state.parent, net.clock.now_ms())
    return Block(
        header=state._header(
            body, state.rules.outcome(state.parent, body, net.keys[0].address, time_ms), net.keys[0].address, time_ms
        ),
        body=body,
    )


@pytest.fixture
async def ledger(net, autojump_clock):
    ledger = await net.open()
    net.empty_body = (await net.propose(ledger)).body
    return ledger


def say(ledger, batches) -> None:
    for signed, _ in batches:
        ledger.observations.add_commit(signed)
    for _, reveal in batches:
        ledger.observations.add_reveal(reveal)


async def refused_at_first(net, ledger, block: Block, match: str) -> None:
    with pytest.raises(OmissionError, match=match):
        await ledger.validate(block, net.clock.now_ms(), Round(0))
    await ledger.validate(block, net.clock.now_ms(), Round(1))
    await ledger.commit(net.certify(block))


async def test_a_row_in_time_may_not_be_left_out(net, autojump_clock, ledger) -> None:
    record = net.record("a")
    batches = [net.batch(key, record) for key in net.keys]
    say(ledger, batches)
    whole = block_of(net, ledger, [record], batches)
    await ledger.validate(whole, net.clock.now_ms(), Round(0))
    block = block_of(net, ledger, [record], batches[:3])
    await refused_at_first(net, ledger, block, "leaves out what 0x")


async def test_a_row_that_came_late_may_be_left_out(net, autojump_clock, ledger) -> None:
    record = net.record("a")
    batches = [net.batch(key, record) for key in net.keys]
    say(ledger, batches[:3])
    await trio.sleep(WAIT_FOR_ALL_S)
    say(ledger, batches[3:])
    await ledger.validate(block_of(net, ledger, [record], batches[:3]), net.clock.now_ms(), Round(0))


async def test_a_record_that_was_due_for_long_may_not_be_left_out(net, autojump_clock, ledger) -> None:
    old, new = net.record("old"), net.record("new")
    say(ledger, [net.batch(key, old) for key in net.keys])
    await trio.sleep(WAIT_FOR_ALL_S + LEFT_OUT_AFTER_S / 2)
    batches = [net.batch(key, new) for key in net.keys]
    say(ledger, batches)
    await ledger.validate(block_of(net, ledger, [new], batches), net.clock.now_ms(), Round(0))
    await trio.sleep(LEFT_OUT_AFTER_S)
    await refused_at_first(net, ledger, block_of(net, ledger, [new], batches), "leaves out record")


async def test_a_block_that_says_it_is_old_is_believed_for_a_while(net, autojump_clock, ledger) -> None:
    record = net.record("a")
    say(ledger, [net.batch(key, record) for key in net.keys])
    block = block_of(net, ledger, [], [])
    await trio.sleep(4.0)
    await ledger.validate(block, net.clock.now_ms(), Round(0))
    await trio.sleep(4.0)
    with pytest.raises(OmissionError, match="leaves out record"):
        await ledger.validate(block, net.clock.now_ms(), Round(0))


async def test_a_strangers_record_and_a_full_block_are_no_omissions(net, autojump_clock, ledger, monkeypatch) -> None:
    foreign, record, more = net.record("x", net.stranger), net.record("a"), net.record("b")
    say(ledger, [net.batch(key, foreign) for key in net.keys])
    await trio.sleep(5.0)
    batches = [net.batch(key, record) for key in net.keys]
    say(ledger, batches)
    await ledger.validate(block_of(net, ledger, [record], batches), net.clock.now_ms(), Round(0))
    say(ledger, [net.batch(key, more) for key in net.keys])
    await trio.sleep(5.0)
    block = block_of(net, ledger, [record], batches)
    monkeypatch.setattr("nsllm.governance.objections.MAX_BLOCK_RECORDS", 1)
    await ledger.validate(block, net.clock.now_ms(), Round(0))
    monkeypatch.undo()
    with pytest.raises(OmissionError, match="leaves out record"):
        await ledger.validate(block, net.clock.now_ms(), Round(0))


async def test_a_copied_row_may_not_be_taken_in(net, autojump_clock, ledger) -> None:
    record = net.record("a")
    batches = [net.batch(key, record) for key in net.keys]
    say(ledger, batches[:3])
    await trio.sleep(COPIED_AFTER_S + 0.1)
    await refused_at_first(net, ledger, block_of(net, ledger, [record], batches), "after others had opened")


async def test_our_own_proposal_leaves_copied_rows_out(net, autojump_clock, ledger) -> None:
    record = net.record("a")
    batches = [net.batch(key, record) for key in net.keys]
    say(ledger, batches[:3])
    await trio.sleep(WAIT_FOR_ALL_S)
    say(ledger, batches[3:])
    block = await net.propose(ledger)
    assert [each.signed for each in block.body.batches] == [signed for signed, _ in batches[:3]]
    assert ledger.observations.standings()[net.keys[3].address].late == 1


async def test_an_equivocators_batch_may_not_be_taken_in(net, autojump_clock, ledger) -> None:
    record = net.record("a")
    batches = [net.batch(key, record) for key in net.keys]
    say(ledger, batches)
    other = net.batch(net.keys[3], net.record("b"), number=batches[3][0].commit.number)[0]
    with pytest.raises(Exception, match="contradicts itself"):
        ledger.observations.add_commit(other)
    await trio.sleep(WAIT_FOR_ALL_S)  # for another word of it
    assert len((await net.propose(ledger)).body.batches) == 3
    await refused_at_first(net, ledger, block_of(net, ledger, [record], batches), "who equivocated")


async def test_a_follower_holds_nothing_against_anybody(net, autojump_clock, ledger) -> None:
    record = net.record("a")
    batches = [net.batch(key, record) for key in net.keys]
    ledger._key = None
    say(ledger, batches)
    await ledger.validate(block_of(net, ledger, [record], batches[:3]), net.clock.now_ms(), Round(0))
