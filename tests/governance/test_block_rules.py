"""What honest validators refuse: headers and bodies that break one rule each."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.block import Block
from nsllm.consensus.errors import BlockError
from nsllm.consensus.observation import DimensionScore, sign_observation
from nsllm.consensus.registry import admit
from nsllm.crypto import keccak256
from nsllm.governance.errors import LedgerError
from nsllm.governance.ledger import Ledger
from nsllm.governance.log_entry import admission_entry, checkpoint_entry
from nsllm.ids import Height, Ppm, TimeMs


def remade(net, ledger: Ledger, body, **changes: object) -> Block:
    """A block of `body` whose header is right, but for `changes`: only the rule that it breaks can refuse it."""
    state = ledger._state
    proposer, time_ms = net.keys[0].address, state.rules.time_after(state.parent, net.clock.now_ms())
    header = state._header(body, state.rules.outcome(state.parent, body), proposer, time_ms)
    return Block(header=replace(header, **changes), body=body)


HEADER_CHANGES = {
    "epoch": 1,
    "height": Height(9),
    "parent": keccak256(b"x"),
    "body_digest": keccak256(b"x"),
    "scores_root": keccak256(b"x"),
    "log_size": 9,
    "log_root": keccak256(b"x"),
    "state_root": keccak256(b"x"),
    "validators_hash": keccak256(b"x"),
    "policy_digest": keccak256(b"x"),
    "registry_hash": keccak256(b"x"),
    "next_epoch": keccak256(b"x"),
    "proposer": keccak256(b"x")[:20],
    "time_ms": TimeMs(5),
}


@pytest.mark.parametrize("field", [*HEADER_CHANGES, "future"])
async def test_a_header_with_one_wrong_field_is_refused_by_name(net, autojump_clock, field) -> None:
    ledger = await net.open()
    net.observe_all(ledger, net.record("first"))
    block = await net.propose(ledger)
    await ledger.validate(block, net.clock.now_ms())
    change = {field: HEADER_CHANGES[field]} if field != "future" else {"time_ms": net.clock.now_ms() + 5001}
    wrong = Block(header=replace(block.header, **change), body=block.body)
    with pytest.raises(BlockError, match=f"header.{'time_ms' if field == 'future' else field}: "):
        await ledger.validate(wrong, net.clock.now_ms())


def observed(net, *records, keys=None):
    found = [net.observe(key, signed) for signed in records for key in keys or net.keys]
    return tuple(sorted(found, key=lambda s: (s.observation.record, s.observation.validator)))


def changed(net, index: int, **changes: object):
    """Observations of one record where number `index` differs, rightly signed."""
    found = list(observed(net, net.record("first")))
    key = next(key for key in net.keys if key.address == found[index].observation.validator)
    found[index] = sign_observation(key, net.network, replace(found[index].observation, **changes))
    return {"observations": tuple(found)}


def admission_of(net, key=None, by=None):
    member = net.member(key or net.stranger, ("contributor",))
    return admission_entry(admit(by or net.generator, net.network, member))


BROKEN_BODIES = {
    "too few": (lambda n: {"observations": observed(n, n.record("first"))[:2]}, "2 observations, 3 are needed"),
    "out of order": (lambda n: {"observations": observed(n, n.record("first"))[::-1]}, "not ascending"),
    "twice": (lambda n: {"observations": observed(n, n.record("first"))[:1] * 3}, "not ascending"),
    "by a stranger": (
        lambda n: {"observations": observed(n, n.record("first"), keys=[*n.keys, n.stranger])},
        "who is not a validator",
    ),
    "another rubric": (lambda n: changed(n, 1, rubric=keccak256(b"x")), "do not belong together|under rubric"),
    "another generator": (lambda n: changed(n, 1, generator=n.keys[0].address), "do not belong together"),
    "another dimension": (
        lambda n: changed(n, 1, scores=(DimensionScore(name="zeal", ppm=Ppm(1)),)),
        "dimensions|do not belong together",
    ),
    "bad signature": (
        lambda n: {
            "observations": (
                *observed(n, n.record("first"))[:3],
                replace(observed(n, n.record("first"))[3], signature=observed(n, n.record("other"))[3].signature),
            )
        },
        "expected 0x",
    ),
    "a stranger's record": (
        lambda n: {"observations": observed(n, n.record("first", n.stranger))},
        "generator 0x[0-9a-f]+ is not a member",
    ),
    "scored before": (lambda n: {"observations": observed(n, n.record("zero"))}, "was scored before"),
    "an entry that is none": (lambda n: {"entries": (b"\x80",)}, "body: "),
    "scores as an entry": (
        lambda n: {"entries": (n.scores_entry,)},
        "scores come from observations",
    ),
    "a stranger's checkpoint": (
        lambda n: {"entries": (checkpoint_entry(n.checkpoint(n.stranger)),)},
        "checkpoint of 0x[0-9a-f]+, who is not a member",
    ),
    "a forged checkpoint": (
        lambda n: {
            "entries": (
                checkpoint_entry(replace(n.checkpoint(n.generator), signature=n.checkpoint(n.stranger).signature)),
            )
        },
        "expected 0x",
    ),
    "a second checkpoint": (
        lambda n: {"entries": (checkpoint_entry(n.checkpoint(n.keys[0], 9)),)},
        "second checkpoint .* within 60000 ms",
    ),
    "a checkpoint of a log that shrank": (
        lambda n: {"entries": (checkpoint_entry(n.checkpoint(n.keys[1], 1)),)},
        "checkpoint of 1 entries after one of 1",
    ),
    "a member's admission": (lambda n: {"entries": (admission_of(n, n.generator),)}, "a member already"),
    "an admission by a stranger": (lambda n: {"entries": (admission_of(n, by=n.stranger),)}, "not a genesis member"),
    "an admission twice": (lambda n: {"entries": (admission_of(n),) * 2}, "each ascending by whom"),
    "a checkpoint before an admission": (
        lambda n: {"entries": (checkpoint_entry(n.checkpoint(n.generator)), admission_of(n))},
        "each ascending by whom",
    ),
    "a transaction that is none": (lambda n: {"transactions": (b"\x02\x80",)}, "body.transactions: "),
    "an anchor too soon": (lambda n: {"transactions": (n.too_soon,)}, "allowed from"),
}


HEADERLESS = ("twice", "another rubric", "another generator", "another dimension", "an entry that is none")
"""Bodies that nothing follows from, so that no header fits them."""


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_body_that_breaks_one_rule_is_refused(net, autojump_clock, name) -> None:
    change, message = BROKEN_BODIES[name]
    ledger = await net.open()
    zero = net.record("zero")
    net.observe_all(ledger, zero)
    ledger.add_checkpoint(net.checkpoint(net.keys[1]))
    await net.decide(ledger)
    await trio.sleep(60)
    net.observe_all(ledger, net.record("between"))
    ledger.add_checkpoint(net.checkpoint(net.keys[0]))
    blocks = await net.run_until_quiet(ledger)
    net.scores_entry = ledger._state.store.log.entries(0, 1)[0]
    net.observe_all(ledger, net.record("more"))
    body = (await net.propose(ledger)).body
    await net.decide(ledger)
    net.too_soon = ledger._state._chain.anchor_transaction(ledger.tip_certificate)
    assert blocks
    body = replace(body, **{"observations": (), "transactions": (), "entries": (), **change(net)})
    block = remade(net, ledger, body) if name not in HEADERLESS else replace(await net.propose(ledger), body=body)
    with pytest.raises(BlockError, match=message):
        await ledger.validate(block, net.clock.now_ms())


async def test_an_empty_body_is_valid_and_so_is_the_next_proposal(net, autojump_clock) -> None:
    ledger = await net.open()
    decided = await net.decide(ledger)
    assert decided.block.body.observations == ()
    assert await ledger.due_in() is None
    with pytest.raises(LedgerError, match="no proposal for height 1"):
        await ledger.propose(Height(1), net.clock.now_ms(), net.keys[0].address)
    with pytest.raises(LedgerError, match="cannot propose here"):
        await ledger.propose(Height(2), net.clock.now_ms(), net.keys[1].address)


async def test_a_block_over_the_limit_is_refused(net, autojump_clock) -> None:
    ledger = await net.open()
    block = await net.propose(ledger)
    body = replace(block.body, transactions=(bytes(65536),) * 16)
    with pytest.raises(BlockError, match="the limit is 1048576"):
        await ledger.validate(Block(header=block.header, body=body), net.clock.now_ms())
