"""What a ledger keeps through restarts, kills, damage and full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from nsllm.consensus.registry import admit
from nsllm.governance.errors import DamageError, StorageError
from nsllm.governance.ledger import Ledger
from nsllm.ids import Height


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
    assert net.shown(await ledger.summary()) == net.shown(before)
    assert ledger.registry.get(net.stranger.address) == admission.member
    assert ledger.is_settled(signed.record.digest())
    assert await ledger.due_in() is None
    net.observe_all(ledger, net.record("second"))
    await net.run_until_quiet(ledger)
    assert (await ledger.proofs.of(net.record("second").record.digest())).anchor is not None


@pytest.mark.parametrize("at", ["block", "log", "chain", "anchor"])
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
    target, name = {
        "block": (state.store, "put"),
        "log": (state.store.log, "append_grown"),
        "chain": (state._chain, "execute"),
        "anchor": (state.store.anchors, "put"),
    }[at]

    def break_off(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, name, break_off)
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
import sys
from pathlib import Path
import trio
from nsllm.clock import SystemClock
sys.path.append(sys.argv[2])
from ledgers import LedgerNetwork

async def main():
    net = LedgerNetwork(1)
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
    path, shared = tmp_path / "ledger.sqlite", Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", CHILD, path, shared], stdout=subprocess.PIPE, text=True) as child:
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
    assert net.shown(await ledger.summary()) == net.shown(await healthy.summary())


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM network_log_node WHERE level = 5 AND position = 0", "network log"),
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
            await ledger.proofs.of(net.record(f"r{i}.0").record.digest())
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
