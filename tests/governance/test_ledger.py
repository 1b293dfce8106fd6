"""The ledger driven by hand: keys propose, validate, certify and commit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from nsllm import canonical
from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.errors import BlockError, CertificateError, DivergenceError, ObservationError
from nsllm.consensus.observation import DimensionScore, sign_observation
from nsllm.consensus.registry import admit
from nsllm.crypto import keccak256
from nsllm.errors import SignatureError
from nsllm.governance.errors import ChainRefusal, DamageError, LedgerError, StorageError
from nsllm.governance.ledger import Ledger
from nsllm.governance.log_entry import Checkpoint, admission_entry, checkpoint_entry, sign_checkpoint
from nsllm.ids import Height, Ppm, TimeMs


@pytest.fixture
def net(ledger_network):
    return ledger_network(4)


async def test_a_scored_record_is_due_when_all_observed_it_or_after_a_wait(net, autojump_clock) -> None:
    ledger = await net.open()
    assert await ledger.due_in() is None
    signed = net.record("first")
    for key in net.keys[:2]:
        assert ledger.add_observation(net.observe(key, signed))
    assert await ledger.due_in() is None
    assert ledger.add_observation(net.observe(net.keys[2], signed))
    assert await ledger.due_in() == pytest.approx(0.3)
    assert not (await net.propose(ledger)).body.observations
    await trio.sleep(0.1)
    assert await ledger.due_in() == pytest.approx(0.2)
    assert ledger.add_observation(net.observe(net.keys[3], signed))
    assert await ledger.due_in() == 0.0
    decided = await net.decide(ledger)
    assert len(decided.block.body.observations) == 4
    assert (ledger.height, ledger.log_size) == (1, 1)
    assert not ledger.add_observation(net.observe(net.keys[3], signed))
    assert len((await ledger.summary()).blocks) == 1


async def test_a_certified_record_holds_and_wakes_who_waits_for_it(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("first")
    found = []
    seen: list[int] = []
    unsubscribe = ledger.subscribe(lambda decided: seen.append(decided.block.header.height))

    async def wait() -> None:
        found.append(await ledger.wait_certified(signed))

    with trio.move_on_after(1):
        await ledger.wait_certified(signed)
    assert not ledger._waiters
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        net.observe_all(ledger, signed)
        await net.decide(ledger)
    assert found[0] == found[1]
    found[0].check(net.network, net.validators)
    assert ledger.is_certified(signed.record.digest())
    assert not ledger._waiters
    unsubscribe()
    await net.run_until_quiet(ledger)
    assert seen == [1]


async def test_blocks_go_on_only_until_the_last_anchor_is_certified(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("first")
    net.observe_all(ledger, signed)
    blocks = await net.run_until_quiet(ledger)
    kinds = [(len(b.block.body.observations), len(b.block.body.transactions)) for b in blocks]
    assert kinds == [(4, 0), (0, 1), (0, 0)]
    proof = await ledger.proof(signed.record.digest())
    assert proof is not None
    assert proof.anchor is not None
    assert proof.anchor.certificate == blocks[2].certificate
    assert proof.anchor.anchored == blocks[0].block.header
    anchors = (await ledger.summary()).anchors
    assert [(a.log_size, a.transaction_height, a.proof_height) for a in anchors] == [(1, 2, 3)]
    assert anchors[0].transaction_hash == keccak256(blocks[1].block.body.transactions[0])
    assert (await ledger.anchor_for(1)).log_size == 1
    assert await ledger.anchor_for(2) is None


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
        assert (await ledger.proof(net.record(f"r{i}").record.digest())).anchor is not None


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
    summaries = [shown(await ledger.summary()) for ledger in ledgers]
    assert all(summary == summaries[0] for summary in summaries)
    assert len({ledger._state._chain.state_root() for ledger in ledgers}) == 1
    assert summaries[0][1] == 18


def shown(summary):
    return summary.height, summary.log_size, summary.log_root, summary.state_root, summary.blocks, summary.anchors


# What honest validators refuse


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


def checkpoint_of(net, key, size=1):
    state = Checkpoint(peer=key.address, size=size, root=keccak256(b"log"), time_ms=TimeMs(1))
    return sign_checkpoint(key, net.network, state)


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
        lambda n: {"entries": (checkpoint_entry(checkpoint_of(n, n.stranger)),)},
        "checkpoint of 0x[0-9a-f]+, who is not a member",
    ),
    "a forged checkpoint": (
        lambda n: {
            "entries": (
                checkpoint_entry(
                    replace(checkpoint_of(n, n.generator), signature=checkpoint_of(n, n.stranger).signature)
                ),
            )
        },
        "expected 0x",
    ),
    "a second checkpoint": (
        lambda n: {"entries": (checkpoint_entry(checkpoint_of(n, n.keys[0], 9)),)},
        "second checkpoint .* within 60000 ms",
    ),
    "a checkpoint of a log that shrank": (
        lambda n: {"entries": (checkpoint_entry(checkpoint_of(n, n.keys[1], 1)),)},
        "checkpoint of 1 entries after one of 1",
    ),
    "a member's admission": (lambda n: {"entries": (admission_of(n, n.generator),)}, "a member already"),
    "an admission by a stranger": (lambda n: {"entries": (admission_of(n, by=n.stranger),)}, "not a genesis member"),
    "an admission twice": (lambda n: {"entries": (admission_of(n),) * 2}, "not admissions ascending"),
    "a checkpoint before an admission": (
        lambda n: {"entries": (checkpoint_entry(checkpoint_of(n, n.generator)), admission_of(n))},
        "not admissions ascending",
    ),
    "a transaction that is none": (lambda n: {"transactions": (b"\x02\x80",)}, "body.transactions: "),
    "an anchor too soon": (lambda n: {"transactions": (n.too_soon,)}, "allowed from"),
}


HEADERLESS = ("twice", "another rubric", "another generator", "another dimension")
"""Bodies that give no scores at all, so that no header fits them."""


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_body_that_breaks_one_rule_is_refused(net, autojump_clock, name) -> None:
    change, message = BROKEN_BODIES[name]
    ledger = await net.open()
    zero = net.record("zero")
    net.observe_all(ledger, zero)
    ledger.add_checkpoint(checkpoint_of(net, net.keys[1]))
    await net.decide(ledger)
    await trio.sleep(60)
    net.observe_all(ledger, net.record("between"))
    ledger.add_checkpoint(checkpoint_of(net, net.keys[0]))
    blocks = await net.run_until_quiet(ledger)
    net.scores_entry = ledger._state.store.log.entries(0, 1)[0]
    net.observe_all(ledger, net.record("more"))
    body = (await net.propose(ledger)).body
    await net.decide(ledger)
    net.too_soon = ledger._state._chain.anchor_transaction(net.keys[0], ledger.tip_certificate)
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


async def test_observations_are_checked_when_they_come(net, autojump_clock) -> None:
    ledger = await net.open()
    good = net.observe(net.keys[0], net.record("first"))
    with pytest.raises(BlockError, match="not a validator"):
        ledger.add_observation(net.observe(net.stranger, net.record("first")))
    with pytest.raises(BlockError, match="rubric"):
        ledger.add_observation(net.observe(net.keys[0], net.record("first"), rubric=keccak256(b"x")))
    with pytest.raises(SignatureError):
        ledger.add_observation(replace(good, signature=net.observe(net.keys[1], net.record("first")).signature))
    with pytest.raises((ObservationError, BlockError)):
        ledger.add_observation(net.observe(net.keys[0], net.record("x"), scores=good.observation.scores[::-1]))
    assert ledger.add_observation(good)
    assert not ledger.add_observation(good)
    assert ledger.observations_for(good.observation.record) == (good,)


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
    assert not ledger.is_certified(net.record("old").record.digest())
    assert ledger.is_certified(net.record("new").record.digest())
    net.observe_all(ledger, net.record("old"))
    assert await ledger.due_in() is None
    assert (await ledger.summary()).pending == 0
    assert await ledger.certified(net.record("old").record.digest()) is not None


async def test_a_proposal_of_very_much_stays_within_the_bounds(ledger_network, autojump_clock) -> None:
    net = ledger_network(1)
    ledger = await net.open()
    net.observe_all(ledger, *(net.record(f"r{i}") for i in range(300)))
    blocks = await net.run_until_quiet(ledger)
    counts = [len(b.block.body.observations) for b in blocks if b.block.body.observations]
    assert counts == [128, 128, 44]


async def test_a_block_over_the_limit_is_refused(net, autojump_clock) -> None:
    ledger = await net.open()
    block = await net.propose(ledger)
    body = replace(block.body, transactions=(bytes(65536),) * 16)
    with pytest.raises(BlockError, match="the limit is 1048576"):
        await ledger.validate(Block(header=block.header, body=body), net.clock.now_ms())


# What the log holds besides scores


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
    assert await ledger.certified(signed.record.digest()) is not None
    assert not ledger.add_admission(admission)


async def test_a_checkpoint_rides_along_at_most_once_a_minute(net, autojump_clock) -> None:
    ledger = await net.open()
    assert not ledger.add_checkpoint(checkpoint_of(net, net.stranger))
    assert ledger.add_checkpoint(checkpoint_of(net, net.generator, 1))
    assert await ledger.due_in() is None
    sizes = []
    for i in range(4):
        net.observe_all(ledger, net.record(f"r{i}"))
        await net.decide(ledger)
        sizes.append(ledger.log_size)
        assert not ledger.add_checkpoint(checkpoint_of(net, net.generator, 1))
        ledger.add_checkpoint(checkpoint_of(net, net.generator, 2 + i))
        await trio.sleep(31)
    assert sizes == [2, 3, 5, 6]


# What survives


async def test_a_reopened_ledger_goes_on_where_it_stood(net, autojump_clock, tmp_path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await net.open(path)
    signed = net.record("first")
    net.observe_all(ledger, signed)
    admission = admit(net.generator, net.network, net.member(net.stranger, ("contributor",)))
    ledger.add_admission(admission)
    await net.run_until_quiet(ledger)
    before = await ledger.summary()
    await ledger.close()
    ledger = await net.open(path)
    assert shown(await ledger.summary()) == shown(before)
    assert ledger.registry.get(net.stranger.address) == admission.member
    assert ledger.is_certified(signed.record.digest())
    assert await ledger.due_in() is None
    net.observe_all(ledger, net.record("second"))
    await net.run_until_quiet(ledger)
    assert (await ledger.proof(net.record("second").record.digest())).anchor is not None


@pytest.mark.parametrize("at", ["put", "append", "execute", "put_anchor"])
async def test_a_commit_that_breaks_off_leaves_nothing_and_can_be_repeated(
    net, autojump_clock, tmp_path, monkeypatch, at
) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await net.open(path)
    net.observe_all(ledger, net.record("first"))
    await net.decide(ledger)
    net.observe_all(ledger, net.record("second"))
    await trio.sleep(1)
    decided = net.certify(await net.propose(ledger))
    assert decided.block.body.transactions
    state = ledger._state
    target = {"put": state.store, "append": state.store.log, "execute": state._chain, "put_anchor": state.store}[at]

    def break_off(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, at, break_off)
        with pytest.raises(KeyboardInterrupt):
            await ledger.commit(decided)
    assert (ledger.height, ledger.log_size) == (1, 1)
    assert state.store.log.frontier().size == 1
    twin = await net.open(path)
    assert twin.height == 1
    await twin.close()
    await ledger.commit(decided)
    await ledger.commit(decided)
    assert (ledger.height, ledger.log_size) == (2, 2)
    await net.run_until_quiet(ledger)


CHILD = """
import importlib.util, sys
from pathlib import Path
import trio
from nsllm.clock import SystemClock
spec = importlib.util.spec_from_file_location("doubles", sys.argv[2])
doubles = importlib.util.module_from_spec(spec)
sys.modules["doubles"] = doubles
spec.loader.exec_module(doubles)

async def main():
    net = doubles.LedgerNetwork(1)
    net.clock = SystemClock()
    ledger = await net.open(Path(sys.argv[1]))
    while True:
        net.observe_all(ledger, net.record(f"r{ledger.height}"))
        await net.decide(ledger)
        print(ledger.height, ledger.log_root.hex(), flush=True)

trio.run(main)
"""


async def test_what_was_committed_survives_kill_9(ledger_network, tmp_path) -> None:
    net = ledger_network(1)
    path, doubles = tmp_path / "ledger.sqlite", Path(__file__).with_name("conftest.py")
    with subprocess.Popen([sys.executable, "-c", CHILD, path, doubles], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(12)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
    height, root = [line.split() for line in lines if line.endswith("\n")][-1]
    ledger = await net.open(path)
    assert ledger.height >= int(height) >= 12
    decided = (await ledger.decided(Height(int(height)), 1))[0]
    assert decided.block.header.log_root.hex() == root
    await ledger.close()


async def grown(net, path) -> Ledger:
    ledger = await net.open(path)
    for i in range(4):
        net.observe_all(ledger, *(net.record(f"r{i}.{k}") for k in range(8)))
        await net.decide(ledger)
    await net.run_until_quiet(ledger)
    return ledger


async def test_a_damaged_page_is_said_and_the_chain_synced_again(net, autojump_clock, tmp_path) -> None:
    path = tmp_path / "ledger.sqlite"
    await (await grown(net, path)).close()
    healthy = await grown(net, None)
    raw = bytearray(path.read_bytes())
    raw[4096 * 3 : 4096 * 6] = b"\xa5" * (4096 * 3)
    path.write_bytes(raw)
    with pytest.raises(DamageError, match=r"damaged.*open with recovery"):
        await net.open(path)
    assert path.read_bytes() == raw
    ledger = await net.open(path, recover=True)
    assert ledger.notice is not None
    assert "was damaged" in ledger.notice
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    for decided in await healthy.decided(Height(1), 64):
        await ledger.commit(decided)
    assert ledger.log_root == healthy.log_root
    assert shown(await ledger.summary()) == shown(await healthy.summary())


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM network_log_node WHERE level = 0 AND position = 31", "network log"),
        ("UPDATE network_log_node SET hash = zeroblob(32) WHERE level = 5 AND position = 0", "network log has root"),
        ("UPDATE block SET decided = x'80' WHERE height = (SELECT max(height) FROM block)", "stored block 6"),
        ("DELETE FROM evm", "EVM state"),
    ],
)
async def test_rows_that_do_not_fit_the_certified_header_are_found(
    net, autojump_clock, tmp_path, statement, message
) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await grown(net, path)
    assert ledger.log_size == 32
    ledger._state._database.connection.execute(statement)
    await ledger.close()
    with pytest.raises(DamageError, match=message):
        await net.open(path)
    assert (await net.open(path, recover=True)).height == 0


async def test_damage_met_while_running_is_said(net, autojump_clock, tmp_path) -> None:
    path = tmp_path / "ledger.sqlite"
    await (await grown(net, path)).close()
    ledger = await net.open(path)
    raw = bytearray(path.read_bytes())
    raw[4096 * 2 :] = b"\xa5" * (len(raw) - 4096 * 2)
    path.write_bytes(raw)
    ledger._state._database.connection.execute("PRAGMA shrink_memory")
    with pytest.raises(DamageError, match=r"restart|recovery"):
        for i in range(4):
            await ledger.proof(net.record(f"r{i}.0").record.digest())
        await ledger.decided(Height(1), 64)


async def test_another_network_s_file_is_refused_and_left_alone(net, ledger_network, autojump_clock, tmp_path) -> None:
    path = tmp_path / "ledger.sqlite"
    await (await net.open(path)).close()
    with pytest.raises(StorageError, match="of network"):
        await ledger_network(4, "others").open(path, recover=True)
    assert (await net.open(path)).height == 0


async def test_a_full_disk_stores_nothing_and_the_commit_can_be_repeated(net, autojump_clock, tmp_path) -> None:
    ledger = await net.open(tmp_path / "ledger.sqlite")
    connection = ledger._state._database.connection
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
    net.observe_all(ledger, *(net.record(f"r{i}") for i in range(64)))
    decided = net.certify(await net.propose(ledger))
    with pytest.raises(StorageError, match=r"full.*free some space"):
        await ledger.commit(decided)
    assert (ledger.height, ledger.halted) == (0, None)
    assert connection.execute("SELECT count(*) FROM network_log_entry").fetchone()[0] == 0
    connection.execute("PRAGMA max_page_count = 100000")
    await ledger.commit(decided)
    assert ledger.log_size == 64


# What halts, and what is only refused


async def test_a_certified_state_that_is_not_ours_halts_this_ledger(net, autojump_clock) -> None:
    ledger = await net.open()
    signed = net.record("first")
    net.observe_all(ledger, signed)
    await net.decide(ledger)
    await trio.sleep(1)
    block = await net.propose(ledger)
    other = Block(header=replace(block.header, state_root=keccak256(b"x")), body=block.body)
    with pytest.raises(BlockError, match="state_root"):
        await ledger.validate(other, net.clock.now_ms())
    with pytest.raises(DivergenceError, match=r"state_root.*compare versions"):
        await ledger.commit(net.certify(other))
    assert ledger.halted is not None
    assert ledger.height == 1
    assert await ledger.due_in() is None
    for call in (
        lambda: net.propose(ledger),
        lambda: ledger.validate(block, net.clock.now_ms()),
        lambda: ledger.commit(net.certify(block)),
    ):
        with pytest.raises(DivergenceError, match="halted"):
            await call()
    assert await ledger.proof(signed.record.digest()) is not None
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
    empty = replace(block.body, observations=())
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
