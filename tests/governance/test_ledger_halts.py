"""What halts a ledger, and what it only refuses."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm import canonical
from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.errors import BlockError, CertificateError, DivergenceError
from nsllm.crypto import keccak256
from nsllm.ids import Height, Round


async def test_a_certified_state_that_is_not_ours_halts_this_ledger(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("first")
    net.observe_all(ledger, signed)
    await net.decide(ledger)
    await trio.sleep(1)
    block = await net.propose(ledger)
    other = Block(header=replace(block.header, state_root=keccak256(b"x")), body=block.body)
    with pytest.raises(BlockError, match="state_root"):
        await ledger.validate(other, net.clock.now_ms(), Round(0))
    with pytest.raises(DivergenceError, match=r"state_root.*compare versions"):
        await ledger.commit(net.certify(other))
    assert ledger.halted is not None
    assert ledger.height == 1
    assert await ledger.due_in() is None
    for call in (
        lambda: net.propose(ledger),
        lambda: ledger.validate(block, net.clock.now_ms(), Round(0)),
        lambda: ledger.commit(net.certify(block)),
    ):
        with pytest.raises(DivergenceError, match="halted"):
            await call()
    assert await ledger.proofs.of(signed.record.digest()) is not None
    assert (await ledger.summary()).halted == ledger.halted


async def test_a_second_certified_block_at_a_height_halts(net, autojump_clock) -> None:
    ledger = await net.open()
    block = await net.propose(ledger)
    other = Block(header=replace(block.header, time_ms=block.header.time_ms + 1), body=block.body)
    await ledger.commit(net.certify(block))
    with pytest.raises(CertificateError):
        await ledger.commit(net.certify(other, net.keys[:2]))
    assert ledger.halted is None
    with pytest.raises(DivergenceError, match="second block"):
        await ledger.commit(net.certify(other))


async def test_what_is_no_decided_block_is_refused_and_nothing_halts(net, autojump_clock) -> None:
    ledger = await net.open()
    net.observe_all(ledger, net.record("first"))
    block = await net.propose(ledger)
    decided = net.certify(block)
    empty = replace(block.body, subjects=b"", batches=())
    ahead = Block(header=replace(block.header, height=Height(3)), body=block.body)
    cases = [
        (net.certify(block, net.keys[:2]), CertificateError, "quorum"),
        (net.certify(ahead), BlockError, "block 3 after block 0"),
        (
            DecidedBlock(block=Block(header=block.header, body=empty), certificate=decided.certificate),
            BlockError,
            "not",
        ),
        (DecidedBlock(block=ahead, certificate=decided.certificate), BlockError, "another header"),
    ]
    for wrong, kind, message in cases:
        with pytest.raises(kind, match=message):
            await ledger.commit(wrong)
    assert (ledger.height, ledger.halted) == (0, None)
    await ledger.commit(decided)
    assert [canonical.encode(each) for each in await ledger.decided(Height(0), 9)] == [canonical.encode(decided)]
