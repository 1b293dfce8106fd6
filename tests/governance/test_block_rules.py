"""What honest validators refuse: headers and bodies that break one rule each."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.batch import Excerpt
from nsllm.consensus.block import Block
from nsllm.consensus.errors import BlockError
from nsllm.consensus.observation import pack_subjects
from nsllm.consensus.registry import admit
from nsllm.crypto import keccak256
from nsllm.governance.checked import Checked
from nsllm.governance.errors import LedgerError
from nsllm.governance.ledger import Ledger
from nsllm.governance.log_entry import admission_entry, checkpoint_entry
from nsllm.ids import Epoch, Height, Round, TimeMs


def remade(net, ledger: Ledger, body, **changes: object) -> Block:
    """A block of `body` whose header is right, but for `changes`: only the rule that it breaks can refuse it."""
    state = ledger._state
    proposer, time_ms = net.keys[0].address, state.rules.time_after(state.parent, net.clock.now_ms())
    header = state._header(body, state.rules.outcome(state.parent, body, proposer, time_ms), proposer, time_ms)
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
    "snapshot_hash": keccak256(b"x"),
    "proposer": keccak256(b"x")[:20],
    "time_ms": TimeMs(5),
}


@pytest.mark.parametrize("field", [*HEADER_CHANGES, "future"])
async def test_a_header_with_one_wrong_field_is_refused_by_name(net, autojump_clock, field) -> None:
    ledger = await net.open()
    net.observe_all(ledger, net.record("first"))
    block = await net.propose(ledger)
    await ledger.validate(block, net.clock.now_ms(), Round(0))
    change = {field: HEADER_CHANGES[field]} if field != "future" else {"time_ms": net.clock.now_ms() + 5001}
    wrong = Block(header=replace(block.header, **change), body=block.body)
    with pytest.raises(BlockError, match=f"header.{'time_ms' if field == 'future' else field}: "):
        await ledger.validate(wrong, net.clock.now_ms(), Round(0))


def observed(net, *records, keys=None):
    """The parts of a body that score the records by all validators' batches."""
    batches = [net.batch(key, *records) for key in keys or net.keys]
    return {
        "subjects": pack_subjects(sorted(map(net.subject, records), key=lambda subject: subject.record)),
        "batches": tuple(Excerpt(signed=signed, rows=reveal.rows) for signed, reveal in batches),
    }


def changed(net, index: int, **changes: object):
    """The same, but for the commit of validator number `index`, rightly signed."""
    return exchanged(net, index, *net.batch(net.keys[index], net.record("first"), **changes))


def exchanged(net, index: int, signed, reveal):
    body = observed(net, net.record("first"))
    batches = list(body["batches"])
    batches[index] = Excerpt(signed=signed, rows=reveal.rows)
    return {**body, "batches": tuple(batches)}


def with_batches(change):
    """The batches of a body that scores one record, put through `change`."""
    return lambda n: {**(body := observed(n, n.record("first"))), "batches": change(body["batches"])}


def abstained(net, count: int, by: int = 4):
    batches = [net.batch(key, abstain=[net.record("first")]) for key in net.keys[:count]]
    batches += [net.batch(key, net.record("first")) for key in net.keys[count:by]]
    return {
        "unscored": net.record("first").record.digest(),
        "batches": tuple(Excerpt(signed=signed, rows=b"") for signed, _ in batches),
    }


def admission_of(net, key=None, by=None):
    member = net.member(key or net.stranger, ("contributor",))
    return admission_entry(admit(by or net.generator, net.network, member))


BROKEN_BODIES = {
    "too few": (with_batches(lambda batches: batches[:2]), "2 observations, 3 are needed"),
    "out of order": (with_batches(lambda batches: batches[::-1]), "not stand in ascending order"),
    "twice": (with_batches(lambda batches: batches[:1] * 3), "not stand in ascending order"),
    "by a stranger": (lambda n: observed(n, n.record("first"), keys=n.with_stranger), "who is not a validator"),
    "another rubric": (lambda n: changed(n, 1, rubric=keccak256(b"x")), "under rubric"),
    "another epoch": (lambda n: changed(n, 1, epoch=Epoch(7)), "of epoch 7"),
    "another generator": (
        lambda n: exchanged(
            n,
            1,
            *n.batch(
                n.keys[1],
                n.subject(n.record("first"))._replace(generator=n.keys[0].address),
            ),
        ),
        "not what was committed to",
    ),
    "another row": (
        lambda n: exchanged(
            n, 1, n.batch(n.keys[1], n.record("first"), number=900)[0], n.batch(n.keys[1], n.record("first"), ppm=7)[1]
        ),
        "not what was committed to",
    ),
    "rows cut short": (
        with_batches(lambda batches: (replace(batches[0], rows=batches[0].rows[:-1]), *batches[1:])),
        "not a multiple of 26",
    ),
    "a row twice": (
        with_batches(lambda batches: (replace(batches[0], rows=batches[0].rows * 2), *batches[1:])),
        "row 0 after row 0",
    ),
    "more than the whole": (
        with_batches(lambda batches: (replace(batches[0], rows=batches[0].rows[:18] + b"\x7f" * 8), *batches[1:])),
        "the most is 1000000",
    ),
    "in two batches": (
        lambda n: {
            **(body := observed(n, n.record("first"))),
            "batches": (
                *body["batches"][:3],
                *(Excerpt(signed=s, rows=r.rows) for s, r in [n.batch(n.keys[3], n.record("first")) for _ in "ab"]),
            ),
        },
        "in two batches",
    ),
    "a batch about nothing": (
        lambda n: {
            **(body := observed(n, n.record("first"))),
            "batches": (*body["batches"], Excerpt(signed=n.batch(n.keys[3], n.record("x"))[0], rows=b"")),
        },
        "says nothing about the block's records",
    ),
    "a row of no record": (
        lambda n: {
            **(body := observed(n, n.record("first"))),
            "batches": (*body["batches"], *observed(n, n.record("x"), keys=n.keys[3:])["batches"]),
        },
        "of no record that the block scores",
    ),
    "bad signature": (
        with_batches(
            lambda batches: (
                *batches[:3],
                replace(batches[3], signed=replace(batches[3].signed, signature=batches[2].signed.signature)),
            )
        ),
        "expected 0x",
    ),
    "a stranger's record": (
        lambda n: observed(n, n.record("first", n.stranger)),
        "generator 0x[0-9a-f]+ is not a member",
    ),
    "scored before": (lambda n: observed(n, n.record("zero")), "was scored before"),
    "unscored, scored before": (
        lambda n: {
            "unscored": n.record("zero").record.digest(),
            "batches": tuple(
                Excerpt(signed=n.batch(key, abstain=[n.record("zero")])[0], rows=b"") for key in n.keys[:2]
            ),
        },
        "was scored before",
    ),
    "too few abstentions": (lambda n: abstained(n, 1, 1), "1 abstentions, over 1 are needed"),
    "abstentions with commits beside them": (lambda n: abstained(n, 2), "says nothing about the block's records"),
    "scored and unscored": (
        lambda n: {**observed(n, n.record("first")), "unscored": n.record("first").record.digest()},
        "not scored too",
    ),
    "subjects cut short": (lambda n: {"subjects": bytes(83)}, "not a multiple of 84"),
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


HEADERLESS = {
    *("too few", "out of order", "twice", "rows cut short", "a row twice", "more than the whole", "in two batches"),
    *("a batch about nothing", "a row of no record", "too few abstentions", "abstentions with commits beside them"),
    *("scored and unscored", "subjects cut short", "an entry that is none"),
}
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
    net.with_stranger = [key for key in (*net.keys, net.stranger) if key is not net.keys[0]]
    net.with_stranger.sort(key=lambda key: key.address)
    empty = {"subjects": b"", "unscored": b"", "batches": (), "transactions": (), "entries": ()}
    body = replace(body, **{**empty, **change(net)})
    block = remade(net, ledger, body) if name not in HEADERLESS else replace(await net.propose(ledger), body=body)
    with pytest.raises(BlockError, match=message):
        await ledger.validate(block, net.clock.now_ms(), Round(0))


FALSIFIED = {
    "a score": lambda subjects, rows: (subjects, rows[:-4] + (7).to_bytes(4, "big")),
    "a salt": lambda subjects, rows: (subjects, rows[:2] + bytes(16) + rows[18:]),
    "a request": lambda subjects, rows: (subjects[:-32] + bytes(32), rows),
}


@pytest.mark.parametrize("what", FALSIFIED)
async def test_knowing_the_rows_saves_no_check_of_others(net, autojump_clock, what: str) -> None:
    """Commits and rows are here already; the block's commits are the same, something else in it is not."""
    ledger = await net.open()
    net.observe_all(ledger, net.record("first"))
    body = (await net.propose(ledger)).body
    checked = Checked.of(body, ledger._pending.pool)
    assert all(checked.signed(each.signed) and checked.opened(each) for each in body.batches)
    subjects, rows = FALSIFIED[what](body.subjects, body.batches[1].rows)
    batches = (body.batches[0], replace(body.batches[1], rows=rows), *body.batches[2:])
    block = remade(net, ledger, replace(body, subjects=subjects, batches=batches))
    with pytest.raises(BlockError, match="not what was committed to"):
        await ledger.validate(block, net.clock.now_ms(), Round(0))


async def test_an_empty_body_is_valid_and_so_is_the_next_proposal(net, autojump_clock) -> None:
    ledger = await net.open()
    decided = await net.decide(ledger)
    assert decided.block.body.batches == ()
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
        await ledger.validate(Block(header=block.header, body=body), net.clock.now_ms(), Round(0))
