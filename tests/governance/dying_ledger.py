"""A ledger that kills itself (SIGKILL) at a named SQL statement, is opened again, and so on.

    dying_ledger.py FOLDER commit|install STATEMENT LIVES

Each life is a process of its own, forked from this one. `commit`: it decides blocks, with snapshots and pruning, up to
a height. `install`: it takes the snapshot of FOLDER/source.sqlite. It dies when a statement is run that begins with
STATEMENT; the last life goes on to the end. Prints how many died, then height, oldest block and log root.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import trio
from trio.testing import MockClock

from nsllm.governance import database

spec = importlib.util.spec_from_file_location("doubles", Path(__file__).with_name("conftest.py"))
assert spec is not None
assert spec.loader is not None
doubles = importlib.util.module_from_spec(spec)
sys.modules["doubles"] = doubles
spec.loader.exec_module(doubles)

connect = database._connect


def unsynced(path, databases):
    """A process that is killed loses nothing that it gave to the kernel, so nothing waits for the disk here."""
    connection = connect(path, databases)
    connection.execute("PRAGMA synchronous=OFF")
    return connection


database._connect = unsynced
EVERY = 4
TO = 3 * EVERY + 1


async def opened(net, path):
    """The ledger, with the clock where it was left."""
    ledger = await net.open(path, keep_heights=1)
    await trio.sleep((ledger._state.parent.time_ms - doubles.GENESIS_MS) / 1000)
    return ledger


async def grow(net, ledger, to):
    while ledger.height < to:
        key = net.keys[0] if ledger.height == 0 else net.generator
        net.observe_all(ledger, net.record(f"record {ledger.height}", key))
        await net.decide(ledger)
        await trio.sleep(1)


async def take(net, source, late):
    offer, handovers = await source.snapshots.offer(0)
    proved = late.snapshots.check(offer, handovers)
    await late.snapshots.begin()
    for position in range(len(offer.manifest)):
        await late.snapshots.put(proved, position, await source.snapshots.chunk(proved.digest, position))
    await late.snapshots.install(proved, ())


def watch(ledger, statement):
    def die(sql):
        if sql.startswith(statement):
            os.kill(os.getpid(), signal.SIGKILL)

    ledger._state._database.connection.set_trace_callback(die)


async def live(folder, mode, statement, dying):
    net = doubles.LedgerNetwork(1, snapshot_heights=EVERY)
    path = folder / "ledger.sqlite"
    ledger = await opened(net, path)
    if mode == "commit":
        if dying:
            watch(ledger, statement)
        await grow(net, ledger, TO)
        return
    source = await opened(net, folder / "source.sqlite")
    await grow(net, source, TO)
    if ledger.height == 0:
        await grow(net, ledger, 2)
    if dying:
        watch(ledger, statement)
    if ledger.height < 2 + EVERY:
        await take(net, source, ledger)


async def look(folder):
    """What is there: sound, of one height, and nothing half-taken."""
    net = doubles.LedgerNetwork(1, snapshot_heights=EVERY)
    ledger = await opened(net, folder / "ledger.sqlite")
    summary = await ledger.summary()
    rows = ledger._state._database.connection.execute("SELECT count(*) FROM incoming_chunk").fetchone()[0]
    assert rows == 0, "half of a snapshot is left"
    own = net.record("record 0", net.keys[0]).record.digest()
    assert ledger.height == 0 or await ledger.proofs.of(own) is not None, "the proof of the own record is lost"
    await ledger.close()
    return ledger.height, summary.kept_from, summary.log_root.hex()


def main(folder, mode, statement, lives):
    deaths = 0
    for number in range(1, lives + 1):
        child = os.fork()
        if not child:
            trio.run(live, folder, mode, statement, number < lives, clock=MockClock(autojump_threshold=0))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        deaths += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status) and status:
            return 1
        found = trio.run(look, folder, clock=MockClock(autojump_threshold=0))
    print(deaths, *found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
