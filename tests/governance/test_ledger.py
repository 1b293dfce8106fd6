"""The ledger driven by hand: four keys propose, validate, certify and commit."""

from __future__ import annotations

import trio

from nsllm import canonical
from nsllm.governance.anchor_proof import verify_anchor


async def test_a_question_becomes_a_certified_record(ledger_network, autojump_clock) -> None:
    net = ledger_network(4)
    ledger = await net.open()
    assert await ledger.due_in() is None
    signed = net.record("first")
    for key in net.keys[:3]:
        assert ledger.add_observation(net.observe(key, signed))
    assert 0 < await ledger.due_in() <= 0.3
    await trio.sleep(0.3)
    assert await ledger.due_in() == 0.0
    decided = await net.decide(ledger)
    assert ledger.height == 1
    assert ledger.log_size == 1
    certified = await ledger.wait_certified(signed)
    certified.check(net.network, net.validators)
    assert certified.certificate == decided.certificate
    assert not ledger.add_observation(net.observe(net.keys[3], signed))


async def test_blocks_go_on_only_until_the_last_anchor_is_certified(ledger_network, autojump_clock) -> None:
    net = ledger_network(4)
    ledger = await net.open()
    signed = net.record("first")
    net.observe_all(ledger, signed)
    blocks = await net.run_until_quiet(ledger)
    kinds = [(len(b.block.body.observations), len(b.block.body.transactions)) for b in blocks]
    assert kinds == [(4, 0), (0, 1), (0, 0)]
    proof = await ledger.proof(signed.record.digest())
    assert proof is not None
    assert proof.anchor is not None
    assert proof.anchor.certificate.header.height == 3
    verify_anchor(
        proof.anchor.proof,
        network=net.network,
        state_root=proof.anchor.certificate.header.state_root,
        log_size=proof.anchor.anchored.log_size,
        log_root=proof.anchor.anchored.log_root,
        header_id=proof.anchor.anchored.id(),
    )
    assert canonical.encode(proof.anchor.anchored) == canonical.encode(blocks[0].block.header)
