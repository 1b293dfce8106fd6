"""The record store: what it acknowledges stays, what is damaged is moved aside, the index follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.store import RecordStore
from nsllm.clock import SystemClock
from nsllm.embedding import quantize_embedding
from nsllm.offload import InlineOffload


def store_at(path: Path | None) -> RecordStore:
    return RecordStore.open(path, SystemClock(), InlineOffload())


def axis(number: int) -> bytes:
    return quantize_embedding([1.0 if i == number else 0.0 for i in range(384)])


async def test_put_get_and_reopen(tmp_path: Path, certify) -> None:
    path = tmp_path / "records.sqlite"
    store = store_at(path)
    record = certify()
    assert await store.put(record, record.leaf.request_key, 900_000) is True
    assert await store.put(record, record.leaf.request_key, 900_000) is False
    store.close()
    again = store_at(path)
    assert await again.get(record.leaf.request_key) == record
    assert await again.by_digest(record.leaf.record) == record
    assert [found[0] for found in await again.near(record.signed.record.embedding, 3)] == [record]
    assert (await again.stats()).records == 1
    assert await again.holds(record.leaf.record)
    assert await again.erase([record.leaf.record]) == (record.leaf.record,)
    assert not await again.holds(record.leaf.record)
    assert await again.get(record.leaf.request_key) is None
    assert await again.near(record.signed.record.embedding, 3) == ()


async def test_the_best_score_wins_and_strangers_see_public_records_only(certify) -> None:
    store = store_at(None)
    low, high = certify(answer="low"), certify(answer="high")
    group = certify(answer="high", visibility="group")
    await store.put(low, low.leaf.request_key, 500_000)
    await store.put(high, high.leaf.request_key, 900_000)
    assert await store.get(low.leaf.request_key) == high
    await store.put(group, group.leaf.request_key, 900_000)
    assert await store.get(group.leaf.request_key) == group
    assert await store.get(group.leaf.request_key, public_only=True) is None


async def test_neighbours_come_nearest_first(certify) -> None:
    store = store_at(None)
    for number in range(3):
        record = certify(f"question {number}", embedding=axis(number))
        await store.put(record, record.leaf.request_key, 900_000)
    found = await store.near(axis(1), 2)
    assert found[0][0].signed.record.request.question() == "question 1"
    assert found[0][1] == pytest.approx(1.0)
    assert found[1][1] == pytest.approx(0.0)


async def test_an_acknowledged_record_survives_kill_9(tmp_path: Path, certify) -> None:
    from nsllm import canonical

    path = tmp_path / "records.sqlite"
    (tmp_path / "record").write_bytes(canonical.encode(certify()))
    code = f"""
import os, signal, trio
from nsllm import canonical
from nsllm.cache_dht.store import RecordStore
from nsllm.clock import SystemClock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.offload import InlineOffload
from pathlib import Path
record = canonical.decode(Path({str(tmp_path / "record")!r}).read_bytes(), CertifiedRecord, limit_bytes=10**6)
async def main():
    store = RecordStore.open(Path({str(path)!r}), SystemClock(), InlineOffload())
    assert await store.put(record, record.leaf.request_key, 1)
    os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    record = certify()
    assert await store_at(path).get(record.leaf.request_key) == record


async def test_a_damaged_file_is_moved_aside_with_a_notice(tmp_path: Path, certify) -> None:
    path = tmp_path / "records.sqlite"
    store = store_at(path)
    for number in range(50):
        record = certify(f"question {number}")
        await store.put(record, record.leaf.request_key, 1)
    store.close()
    pages = bytearray(path.read_bytes())
    pages[4096 : 4096 * 8] = b"\xff" * 4096 * 7
    path.write_bytes(pages)
    again = store_at(path)
    assert again.notice is not None
    assert "damaged" in again.notice
    assert (await again.stats()).records == 0
    assert list(tmp_path.glob("records.sqlite.damaged-*"))


async def test_a_record_changed_inside_a_sound_page_is_dropped_and_can_come_back(tmp_path: Path, certify) -> None:
    store = store_at(tmp_path / "records.sqlite")
    record = certify()
    await store.put(record, record.leaf.request_key, 1)
    store._connection.execute("UPDATE record SET body=?", (b"garbage",))
    assert await store.get(record.leaf.request_key) is None
    assert await store.digests() == ()
    assert await store.near(record.signed.record.embedding, 3) == ()
    assert await store.put(record, record.leaf.request_key, 1)
    assert await store.get(record.leaf.request_key) == record


async def test_a_page_damaged_while_open_is_a_clear_error(tmp_path: Path, certify) -> None:
    path = tmp_path / "records.sqlite"
    store = store_at(path)
    for number in range(50):
        record = certify(f"question {number}")
        await store.put(record, record.leaf.request_key, 1)
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._connection.execute("PRAGMA cache_size=0")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)
    with pytest.raises(StoreError, match="malformed"):
        await store.digests()


async def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path, certify) -> None:
    store = store_at(tmp_path / "records.sqlite")
    first = certify()
    await store.put(first, first.leaf.request_key, 1)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="full"):
        for number in range(200):
            record = certify(f"question {number}", "long answer " * 200)
            await store.put(record, record.leaf.request_key, 1)
    assert await store.get(first.leaf.request_key) == first


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot open"):
        store_at(tmp_path / "missing" / "records.sqlite")


async def test_what_is_erased_is_in_no_file_any_more(tmp_path: Path, certify) -> None:
    path = tmp_path / "records.sqlite"
    store = store_at(path)
    kept, gone = certify("kept?", "stays here"), certify("gone?", "unmistakable words " * 2000)
    for record in (kept, gone):
        await store.put(record, record.leaf.request_key, 900_000)
    files = lambda: b"".join(each.read_bytes() for each in tmp_path.iterdir())  # noqa: E731
    assert b"unmistakable words" in files()
    assert await store.erase([gone.leaf.record, kept.leaf.generator + bytes(12)]) == (gone.leaf.record,)
    assert b"unmistakable words" not in files()
    assert gone.leaf.record not in files()
    assert await store.get(kept.leaf.request_key) == kept
    assert [found for found, _ in await store.near(kept.signed.record.embedding, 5)] == [kept]
    assert await store.erase([gone.leaf.record]) == ()


class Yielding:
    """Work that others could run beside, as they can in threads."""

    def __init__(self) -> None:
        self.inside = 0

    async def run(self, work):
        assert self.inside == 0, "two calls touch the store at once"
        self.inside += 1
        try:
            await trio.lowlevel.checkpoint()
            return work()
        finally:
            self.inside -= 1


async def test_calls_that_come_together_touch_it_one_after_another(certify) -> None:
    """In a peer they come from many streams, and the work runs in threads: SQLite and FAISS must not be shared."""
    store = RecordStore.open(None, SystemClock(), Yielding())
    records = [certify(f"question {number}", embedding=axis(number)) for number in range(6)]
    async with trio.open_nursery() as nursery:
        for record in records:
            nursery.start_soon(store.put, record, record.leaf.request_key, 900_000)
            nursery.start_soon(store.get, record.leaf.request_key)
            nursery.start_soon(store.near, record.signed.record.embedding, 3)
            nursery.start_soon(store.served, record.leaf.record)
    assert (await store.stats()).records == 6
