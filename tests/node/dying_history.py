"""A log and completions that are pruned, and a process that kills itself (SIGKILL) at each SQL statement of it.

    dying_history.py FOLDER

Prints a JSON object: for each statement, what the next process finds in FOLDER/NUMBER after the death, and again after
it has pruned on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import trio

from nsllm.clock import TrioClock
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.peer_log import PeerLog
from nsllm.ids import ZERO_DIGEST, NetworkId, TimeMs
from nsllm.node.completions import Completions
from nsllm.offload import InlineOffload
from nsllm.record import Message, Record, Request, Sampling, sign_record

KEY = MemberKey(keccak256(b"peer"))
NETWORK = NetworkId(keccak256(b"network"))
STATEMENTS = (
    "BEGIN",
    "DELETE FROM peer_log_first",
    "INSERT INTO peer_log_first",
    "DELETE FROM peer_log_entry",
    "DELETE FROM peer_log_node",
    "DELETE FROM completion",
    "DELETE FROM record",
    "DELETE FROM scores",
    "COMMIT",
)
ENTRIES = 40
PRUNED = 23
COMPLETIONS = 12
OLD_MS = TimeMs(10**12)


async def opened(folder: Path) -> tuple[PeerLog, Completions]:
    """Both stores."""
    clock, offload = TrioClock(1000), InlineOffload()
    log = await PeerLog.open(folder / "log.sqlite", KEY, NETWORK, clock=clock, offload=offload)
    return log, await Completions.open(folder / "completions.sqlite", clock, offload)


def record(number: int):
    """Of one answer."""
    request = Request(
        model="m",
        model_digest=ZERO_DIGEST,
        messages=(Message(role="user", content=f"question {number}"),),
        sampling=Sampling(),
    )
    made = Record(
        network=NETWORK,
        request=request,
        generator=KEY.address,
        visibility="public",
        sampling=Sampling(),
        prompt_token_ids=(1,),
        token_ids=(2,),
        text="text",
        finish_reason="stop",
        embedding=bytes(384),
        created_ms=TimeMs(number),
    )
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


def in_child(*call: object) -> int:
    """How a process of its own ended."""
    child = os.fork()
    if child == 0:
        trio.run(*call)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(folder: Path) -> None:
    """Die at each statement."""
    answers = {}
    for number, statement in enumerate(STATEMENTS):
        place = folder / str(number)
        place.mkdir()
        trio.run(fill, place)
        ended = in_child(prune, place, statement)
        assert os.WIFSIGNALED(ended), statement
        died = trio.run(found, place)
        trio.run(prune, place, "")
        answers[statement] = [died, trio.run(found, place)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
