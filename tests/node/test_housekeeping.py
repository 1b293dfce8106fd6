"""What a peer forgets of its past: never what waits, never what a proof of the rest needs, whenever it is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.clock import TrioClock
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.errors import LogError
from nsllm.governance.peer_log import PeerLog, verify_entry, verify_growth
from nsllm.ids import NetworkId, TimeMs
from nsllm.node.completions import Completions
from nsllm.node.config import HistoryConfig
from nsllm.node.housekeeping import DAY_MS, Housekeeper
from nsllm.node.old_completions import YOUNG_MS
from nsllm.offload import InlineOffload

KEY = MemberKey(keccak256(b"peer"))
NETWORK = NetworkId(keccak256(b"network"))
SCRIPT = Path(__file__).with_name("dying_history.py")
NOW_MS = TimeMs(400 * DAY_MS)


async def open_log() -> PeerLog:
    return await PeerLog.open(None, KEY, NETWORK, clock=TrioClock(1000), offload=InlineOffload())


@pytest.mark.timeout(120)
def test_killed_at_each_statement(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert len(answers) == 9
    for died, after in answers.values():
        assert died["first"] in {0, 23}
        assert died["kept"] in {12, 5}
        assert died["records"] == died["kept"]  # with each completion its record, or neither
        assert died["waiting"] == ["c11"]
        assert {name: after[name] for name in ("first", "size", "kept", "records", "waiting")} == {
            "first": 23,
            "size": 40,
            "kept": 5,  # four that are finished, and the one that waits
            "records": 5,
            "waiting": ["c11"],
        }
        assert died["root"] == after["root"]


@given(st.integers(1, 70), st.data())
async def test_what_is_kept_of_a_log_is_proved_as_if_all_were_there(size, data):
    log = await open_log()
    checkpoints = {}
    for number in range(size):
        await log.append("answered", {"tokens": number}, private=False)
        checkpoints[number + 1] = log.checkpoint()
    for _ in range(data.draw(st.integers(1, 3))):
        await log.prune(data.draw(st.integers(0, size)))
    first = log.first
    last = checkpoints[size]
    assert log.root == last.checkpoint.root
    entries = await log.entries(first, size)
    assert len(entries) == size - first
    for index, entry in enumerate(entries, first):
        verify_entry(entry, await log.inclusion(index, size), last, NETWORK, KEY.address)
    for old in range(max(1, first), size + 1):
        verify_growth(checkpoints[old], last, await log.consistency(old, size), NETWORK, KEY.address)
    for call in (log.entries(first - 1, 1), log.inclusion(first - 1, size), log.consistency(first - 1, size)):
        if first > 1:
            with pytest.raises(LogError, match="not kept"):
                await call
        else:
            call.close()
    await log.append("answered", {}, private=False)
    assert log.size == size + 1


class Ledger:
    """Knows one checkpoint."""

    def __init__(self, size):
        self.size = size

    async def checkpointed(self, _peer):
        return self.size


class Context:
    """Of a peer."""

    address = KEY.address

    class clock:  # noqa: N801 - stands for a field
        @staticmethod
        def now_ms():
            return NOW_MS


@pytest.mark.parametrize(
    ("checkpointed", "keep", "first"),
    [(0, 10, 0), (15, 10, 15), (30, 10, 20), (30, 0, 0), (30, 100, 0)],
)
async def test_a_log_keeps_so_many_entries_and_all_since_its_checkpoint(autojump_clock, checkpointed, keep, first):
    log = await open_log()
    completions = await Completions.open(None, TrioClock(0), InlineOffload())
    for number in range(30):
        await log.append("answered", {"tokens": number}, private=False)
    config = HistoryConfig(completions=0, days=0, log_entries=keep)
    keeper = Housekeeper(
        context=Context(), completions=completions, peer_log=log, ledger=Ledger(checkpointed), config=config
    )
    assert await keeper.tidy() == (0, first)
    assert (log.first, log.size) == (first, 30)
    assert await keeper.tidy() == (0, 0)


@pytest.mark.parametrize(
    ("keep", "days", "kept"),
    [
        (0, 0, range(8)),
        (0, 365, range(3, 8)),
        (3, 0, (5, 6, 7)),
        (1, 0, (6, 7)),  # none goes in its first hour
        (100, 365, range(3, 8)),
        (3, 365, (5, 6, 7)),
    ],
)
async def test_old_completions_and_too_many_go(autojump_clock, keep, days, kept):
    completions = await Completions.open(None, TrioClock(0), InlineOffload())
    ages_ms = [400 * DAY_MS, 399 * DAY_MS, 366 * DAY_MS, 364 * DAY_MS, 9 * DAY_MS, 2 * YOUNG_MS, YOUNG_MS - 1, 0]
    for number, age_ms in enumerate(ages_ms):
        await completions.add(f"c{number}", "none", "private", None, TimeMs(NOW_MS - age_ms), own=True)
    config = HistoryConfig(completions=keep, days=days, log_entries=0)
    keeper = Housekeeper(
        context=Context(), completions=completions, peer_log=await open_log(), ledger=Ledger(0), config=config
    )
    gone, _ = await keeper.tidy()
    found = [number for number in range(8) if await completions.get(f"c{number}") is not None]
    assert (found, gone) == (list(kept), 8 - len(kept))
