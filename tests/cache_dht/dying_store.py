"""A record store that is killed (SIGKILL) at a named SQL statement or after some records, is opened again, and so on.

    dying_store.py FOLDER LIMIT STATEMENT [COUNT ...]

Each life is a process of its own, forked from this one. It puts the records of FOLDER/records that are not there yet,
and says each number once it is acknowledged. It dies when the 3rd statement is run that begins with STATEMENT; or, if
that is empty, is killed once it has acknowledged COUNT records, a life for each count. The last life goes on to the
end. LIMIT is the store's bound in bytes, 0 for none; a quarter of an hour passes after each four records.

After each life it is checked that what was acknowledged is there: all of it or, where there is a bound, what came
within that time. Prints how many lives were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgpack
import trio

from nsllm import canonical
from nsllm.cache_dht.eviction import ROW_BYTES, SETTLE_MS
from nsllm.cache_dht.store import RecordStore
from nsllm.consensus.certified import CertifiedRecord
from nsllm.ids import TimeMs
from nsllm.offload import InlineOffload

GROUP = 4


class Hands:
    ms = TimeMs(1_700_000_000_000)

    def now_ms(self) -> TimeMs:
        return self.ms


def opened(folder: Path, limit: int, clock: Hands) -> RecordStore:
    return RecordStore.open(folder / "records.sqlite", clock, InlineOffload(), max_bytes=limit or None)


async def live(folder: Path, limit: int, statement: str, records: list[CertifiedRecord], known: list[int]) -> None:
    clock = Hands()
    store = opened(folder, limit, clock)
    seen = 0

    def die(sql: str) -> None:
        nonlocal seen
        seen += sql.startswith(statement)
        if seen == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    if statement:
        store._connection.set_trace_callback(die)
    for number, record in enumerate(records):
        clock.ms = TimeMs(Hands.ms + number // GROUP * SETTLE_MS)
        if number not in known:
            await store.put(record, record.leaf.request_key, 900_000)
            await store.get(record.leaf.request_key)
            os.write(1, f"{number}\n".encode())
    store.close()


def check(folder: Path, limit: int, records: list[CertifiedRecord], acknowledged: list[int]) -> None:
    store = opened(folder, limit, Hands())
    assert store.notice is None, store.notice
    rows = store._connection.execute("SELECT digest, body FROM record").fetchall()
    assert all(canonical.decode(body, CertifiedRecord, limit_bytes=len(body)).leaf.record == d for d, body in rows)
    there = {digest for digest, _ in rows}
    newest = max(acknowledged, default=0) // GROUP
    wanted = [number for number in acknowledged if not limit or number // GROUP == newest]
    lost = [number for number in wanted if records[number].leaf.record not in there]
    assert not lost, f"acknowledged and lost: {lost}"
    assert len(store._index) == len(rows), "the index is not what is stored"
    assert store._bytes == sum(len(body) + ROW_BYTES for _, body in rows) <= (limit or store._bytes)
    store.close()


def life(folder: Path, limit: int, statement: str, records: list[CertifiedRecord], known: list[int], count: int) -> int:
    """Run one; kill it after `count` more records are acknowledged, if it is not 0. How it ended."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writes, 1)
        trio.run(live, folder, limit, statement, records, tuple(known))
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as said:
        for number, line in enumerate(said, 1):
            known.append(int(line))
            if number == count:
                os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, limit: int, statement: str, counts: list[int]) -> int:
    bodies = msgpack.unpackb((folder / "records").read_bytes())
    records = [canonical.decode(body, CertifiedRecord, limit_bytes=len(body)) for body in bodies]
    known: list[int] = []
    deaths = 0
    while True:
        status = life(folder, limit, statement, records, known, counts.pop() if counts else 0)
        check(folder, limit, records, known)
        if status != -signal.SIGKILL:
            break
        deaths += 1
    assert sorted(known) == list(range(len(records))), "the last life did not come to its end"
    print(deaths)
    return status


if __name__ == "__main__":
    place, most, beginning, *after = sys.argv[1:]
    sys.exit(main(Path(place), int(most), beginning, [int(count) for count in after]))
