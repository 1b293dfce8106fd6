"""A log and completions that are pruned, and a process that kills itself (SIGKILL) at an SQL statement of it.

    ../lives.py dying_history.py FOLDER STATEMENT 2

FOLDER/found.json holds what the second life finds after the death, and again after it has pruned on.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import trio
from records import small_record

from nsllm.clock import TrioClock
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.peer_log import PeerLog
from nsllm.ids import NetworkId, TimeMs
from nsllm.node.completions import Completions
from nsllm.offload import InlineOffload
from nsllm.record import SignedRecord, sign_record

KEY = MemberKey(keccak256(b"peer"))
NETWORK = NetworkId(keccak256(b"network"))
ENTRIES = 40
PRUNED = 23
COMPLETIONS = 12
OLD_MS = TimeMs(10**12)


async def opened(folder: Path) -> tuple[PeerLog, Completions]:
    """Both stores."""
    clock, offload = TrioClock(1000), InlineOffload()
    log = await PeerLog.open(folder / "log.sqlite", KEY, NETWORK, clock=clock, offload=offload)
    return log, await Completions.open(folder / "completions.sqlite", clock, offload)


def record(number: int) -> SignedRecord:
    """Of one answer."""
    made = small_record(KEY, f"question {number}", network=NETWORK, created_ms=TimeMs(number))
    return sign_record(KEY, made)


async def fill(folder: Path) -> None:
    """All that is pruned later; the last completion still waits for its certificate."""
    log, completions = await opened(folder)
    for number in range(ENTRIES):
        await log.append("answered", {"tokens": number}, private=False)
    for number in range(COMPLETIONS):
        signed = record(number)
        await completions.add(f"c{number}", "pending", "", signed, TimeMs(number), own=True)
        if number < COMPLETIONS - 1:
            await completions.settle(signed.record.digest(), "certified", "")
    await log.close()
    await completions.close()


async def prune(folder: Path, statement: str) -> None:
    """Forget the beginning; dies at the statement, if there is one."""
    log, completions = await opened(folder)

    def die(sql: str) -> None:
        if statement and sql.startswith(statement):
            os.kill(os.getpid(), signal.SIGKILL)

    for database in (log._database, completions._database):
        database.connection.set_trace_callback(die)
    if "completion" in statement or "record" in statement or "scores" in statement:
        await completions.forget(OLD_MS, keep=4, keep_ms=0)
    await log.prune(PRUNED)
    await completions.forget(OLD_MS, keep=4, keep_ms=0)
    await log.close()
    await completions.close()


async def found(folder: Path) -> dict[str, object]:
    """What is there, every proof of it tried."""
    log, completions = await opened(folder)
    for index in range(log.first, log.size):
        await log.inclusion(index, log.size)
    for size in range(max(1, log.first), log.size + 1):
        await log.consistency(size, log.size)
    kept = [f"c{n}" for n in range(COMPLETIONS) if await completions.get(f"c{n}") is not None]
    rows = completions._connection.execute("SELECT count(*) FROM record").fetchone()[0]
    waiting = [row.completion_id for row in await completions.unpublished(9)]
    answer = {
        "first": log.first,
        "size": log.size,
        "root": log.root.hex(),
        "kept": len(kept),
        "records": rows,
        "waiting": waiting,
    }
    await log.close()
    await completions.close()
    return answer


async def live(folder: Path, statement: str) -> None:
    """The first life dies at the statement; the second prunes on, and writes down what it finds before and after."""
    if statement:
        await fill(folder)
        await prune(folder, statement)
        return
    died = await found(folder)
    await prune(folder, "")
    (folder / "found.json").write_text(json.dumps([died, await found(folder)]))


def life(folder: Path, statement: str, _number: int) -> None:
    """One life, from its beginning to its end."""
    trio.run(live, folder, statement)
