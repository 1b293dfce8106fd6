"""A ledger that kills itself (SIGKILL) at a named SQL statement, is opened again, and so on.

    ../lives.py dying_ledger.py FOLDER STATEMENT LIVES

If FOLDER is called `commit`, each life decides blocks, with snapshots and pruning, up to a height; if it is called
`install`, it takes the snapshot of FOLDER/source.sqlite. It dies when a statement is run that begins with STATEMENT;
the last life goes on to the end. FOLDER/found holds what was there last: height, oldest block and log root.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio
from ledgers import GENESIS_MS, LedgerNetwork
from trio.testing import MockClock

from nsllm.governance import database

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
    await trio.sleep((ledger._state.parent.time_ms - GENESIS_MS) / 1000)
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


async def live(folder, statement):
    """One life; ends by SIGKILL if there is a statement to die at."""
    await look(folder)
    net = LedgerNetwork(1, snapshot_heights=EVERY)
    ledger = await opened(net, folder / "ledger.sqlite")
    if folder.name == "commit":
        if statement:
            watch(ledger, statement)
        await grow(net, ledger, TO)
    else:
        source = await opened(net, folder / "source.sqlite")
        await grow(net, source, TO)
        if ledger.height == 0:
            await grow(net, ledger, 2)
        if statement:
            watch(ledger, statement)
        if ledger.height < 2 + EVERY:
            await take(net, source, ledger)
    await ledger.close()
    await look(folder)


async def look(folder):
    """What is there: sound, of one height, and nothing half-taken."""
    net = LedgerNetwork(1, snapshot_heights=EVERY)
    ledger = await opened(net, folder / "ledger.sqlite")
    summary = await ledger.summary()
    rows = ledger._state._database.connection.execute("SELECT count(*) FROM incoming_chunk").fetchone()[0]
    assert rows == 0, "half of a snapshot is left"
    own = net.record("record 0", net.keys[0]).record.digest()
    assert ledger.height == 0 or await ledger.proofs.of(own) is not None, "the proof of the own record is lost"
    await ledger.close()
    (folder / "found").write_text(f"{ledger.height} {summary.kept_from} {summary.log_root.hex()}")


def life(folder: Path, statement: str, _number: int) -> None:
    """One life, from its beginning to its end."""
    trio.run(live, folder, statement, clock=MockClock(autojump_threshold=0))
