"""What was answered survives restarts, and a damaged page costs no more than what stood in it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio
import trio.testing
from records import small_record

from nsllm.clock import SystemClock
from nsllm.crypto import MemberKey
from nsllm.governance.errors import StorageError
from nsllm.ids import TimeMs
from nsllm.node.completions import Completions
from nsllm.offload import InlineOffload
from nsllm.record import SignedRecord, sign_record

KEY = MemberKey(bytes([5]) * 32)
PAGE = 4096


def record(number: int, text: str = "an answer") -> SignedRecord:
    return sign_record(KEY, small_record(KEY, f"question {number}", text=text, created_ms=TimeMs(number)))


async def fill(path: Path, count: int) -> None:
    table = await Completions.open(path, SystemClock(), InlineOffload())
    for number in range(count):
        signed = record(number, "a longer answer " * 40)
        await table.add(f"chatcmpl-{number}", "pending", "", signed, TimeMs(number), own=True)
    await table.close()


def damage(path: Path, page: int) -> None:
    data = bytearray(path.read_bytes())
    data[page * PAGE : (page + 1) * PAGE] = b"\xa5" * PAGE
    path.write_bytes(data)


async def test_completions_and_what_is_unpublished_survive_a_restart(tmp_path: Path):
    path = tmp_path / "completions.sqlite"
    await fill(path, 3)
    table = await Completions.open(path, SystemClock(), InlineOffload())
    await table.settle(record(1, "a longer answer " * 40).record.digest(), "certified", "")
    await table.add("chatcmpl-private", "none", "private", None, TimeMs(9), own=True)
    found = await table.get("chatcmpl-1")
    assert (found.state, found.signed.record.text) == ("certified", "a longer answer " * 40)
    assert [row.completion_id for row in await table.unpublished(10)] == ["chatcmpl-0", "chatcmpl-2"]
    assert (await table.get("chatcmpl-private")).signed is None
    assert await table.get("chatcmpl-unknown") is None
    assert table.notice is None
    await table.close()


async def test_what_is_written_at_the_same_time_shares_a_transaction_and_no_fault(tmp_path: Path):
    table = await Completions.open(tmp_path / "completions.sqlite", SystemClock(), InlineOffload())
    await table.add("taken", "none", "", None, TimeMs(0), own=True)
    commits: list[str] = []
    table._connection.set_trace_callback(lambda sql: commits.append(sql) if sql.startswith("COMMIT") else None)
    refused: list[str] = []

    async def add(name: str) -> None:
        try:
            await table.add(name, "pending", "", record(len(name)), TimeMs(1), own=True)
        except StorageError:
            refused.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(add, "x" * (number + 1))
    assert len(commits) <= 3  # the first alone, then what had gathered
    await table.note("noted", "private", TimeMs(2))
    async with trio.open_nursery() as nursery:
        for name in ("a1", "taken", "b1", "c1"):
            nursery.start_soon(add, name)
    assert refused == ["taken"]
    await table.close()
    table = await Completions.open(tmp_path / "completions.sqlite", SystemClock(), InlineOffload())
    for name in ("a1", "b1", "c1", "x", "x" * 8, "noted"):
        assert await table.get(name) is not None
    await table.close()


async def test_who_is_cancelled_before_its_turn_writes_nothing_and_stops_nobody(tmp_path: Path):
    table = await Completions.open(tmp_path / "completions.sqlite", SystemClock(), InlineOffload())
    async with trio.open_nursery() as nursery:
        await table._lock.acquire()
        with trio.CancelScope() as scope:
            scope.cancel()
            await table.add("given up", "pending", "", record(1), TimeMs(1), own=True)
        nursery.start_soon(lambda: table.add("kept", "pending", "", record(2), TimeMs(1), own=True))
        await trio.testing.wait_all_tasks_blocked()
        table._lock.release()
    assert await table.get("given up") is None
    assert await table.get("kept") is not None
    await table.close()


async def test_what_has_no_record_is_noted_at_once_and_written_with_others(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nsllm.node.completions.NOTES", 3)
    path = tmp_path / "completions.sqlite"
    table = await Completions.open(path, SystemClock(), InlineOffload())

    def written() -> list[str]:
        with sqlite3.connect(path) as raw:
            return [row[0] for row in raw.execute("SELECT id FROM completion ORDER BY id")]

    await table.note("a", "private", TimeMs(1))
    await table.note("b", "withheld", TimeMs(2))
    assert written() == []
    found = await table.get("b")
    assert (found.state, found.detail, found.signed, found.created_ms) == ("none", "withheld", None, 2)
    await table.note("c", "private", TimeMs(3))
    assert written() == ["a", "b", "c"]
    assert (await table.get("b")).detail == "withheld"
    await table.note("d", "private", TimeMs(4))
    await table.add("e", "pending", "", record(1), TimeMs(5), own=True)
    assert written() == ["a", "b", "c", "d", "e"]
    await table.note("f", "private", TimeMs(6))
    await table.close()
    assert written() == ["a", "b", "c", "d", "e", "f"]


async def test_a_full_disk_costs_notes_and_no_answer(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nsllm.node.completions.NOTES", 3)
    table = await Completions.open(tmp_path / "completions.sqlite", SystemClock(), InlineOffload())
    table._connection.execute("PRAGMA max_page_count = 1")
    for number in range(60):
        await table.note(f"{number}", "private " * 500, TimeMs(number))
    assert len(table._notes) <= 3
    assert (await table.get("59")).state == "none"
    await table.close()


async def test_a_damaged_page_costs_its_own_rows_only(tmp_path: Path):
    path = tmp_path / "completions.sqlite"
    await fill(path, 60)
    pages = path.stat().st_size // PAGE
    assert pages > 20
    damage(path, pages // 2)
    table = await Completions.open(path, SystemClock(), InlineOffload())
    found = [await table.get(f"chatcmpl-{number}") for number in range(60)]
    assert sum(row is not None and row.signed is not None for row in found) >= 50
    assert "damaged" in table.notice
    assert "rows of it could be read" in table.notice
    assert len(list(tmp_path.glob("completions.sqlite.damaged-*[0-9]"))) == 1
    await table.add("chatcmpl-new", "pending", "", record(99), TimeMs(99), own=True)
    await table.close()
    again = await Completions.open(path, SystemClock(), InlineOffload())
    assert again.notice is None
    assert (await again.get("chatcmpl-new")).signed == record(99)
    await again.close()


async def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path):
    path = tmp_path / "completions.sqlite"
    path.write_bytes(b"nothing of the kind" * 1000)
    table = await Completions.open(path, SystemClock(), InlineOffload())
    assert "0 rows" in table.notice
    await table.close()


async def test_a_changed_record_in_a_sound_page_is_no_receipt(tmp_path: Path):
    path = tmp_path / "completions.sqlite"
    await fill(path, 1)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE record SET body = x'00'")
    table = await Completions.open(path, SystemClock(), InlineOffload())
    found = await table.get("chatcmpl-0")
    assert (found.state, found.signed) == ("none", None)
    assert "damaged" in found.detail
    assert [row.signed for row in await table.unpublished(5)] == [None]
    await table.close()


async def test_a_full_disk_refuses_what_it_cannot_keep(tmp_path: Path):
    path = tmp_path / "completions.sqlite"
    await fill(path, 2)
    table = await Completions.open(path, SystemClock(), InlineOffload())
    table._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageError, match="full") as caught:
        for number in range(2, 60):
            signed = record(number, "a longer answer " * 40)
            await table.add(f"chatcmpl-{number}", "pending", "", signed, TimeMs(number), own=True)
    assert "free some space" in caught.value.hint
    table._connection.execute("PRAGMA max_page_count = 1000000")
    await table.add("chatcmpl-after", "pending", "", record(77), TimeMs(77), own=True)
    assert (await table.get("chatcmpl-0")).signed is not None
    assert (await table.get("chatcmpl-after")).signed == record(77)
    await table.close()
