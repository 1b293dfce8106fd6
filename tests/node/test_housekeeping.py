"""What a peer forgets of its past: never what waits, never what a proof of the rest needs, whenever it is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nsllm.clock import TrioClock
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.errors import LogError
from nsllm.governance.peer_log import PeerLog, verify_entry, verify_growth
from nsllm.governance.verify import verify_receipt
from nsllm.ids import NetworkId, TimeMs
from nsllm.node import housekeeping as module
from nsllm.node.completions import Completions
from nsllm.node.config import HistoryConfig
from nsllm.node.errors import NotFoundError
from nsllm.node.housekeeping import DAY_MS, Forgotten, Housekeeper
from nsllm.node.old_completions import YOUNG_MS
from nsllm.node.receipts import Receipts
from nsllm.offload import InlineOffload

KEY = MemberKey(keccak256(b"peer"))
NETWORK = NetworkId(keccak256(b"network"))
LIVES_OF = Path(__file__).parents[1] / "lives.py"
SCRIPT = Path(__file__).with_name("dying_history.py")
NOW_MS = TimeMs(400 * DAY_MS)


async def open_log() -> PeerLog:
    return await PeerLog.open(None, KEY, NETWORK, clock=TrioClock(1000), offload=InlineOffload())


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "statement",
    [
        "BEGIN",
        "DELETE FROM peer_log_first",
        "INSERT INTO peer_log_first",
        "DELETE FROM peer_log_entry",
        "DELETE FROM peer_log_node",
        "DELETE FROM completion",
        "DELETE FROM record",
        "DELETE FROM scores",
        "COMMIT",
    ],
)
def test_killed_at(tmp_path, statement):
    done = subprocess.run(
        [sys.executable, LIVES_OF, SCRIPT, tmp_path, statement, "2"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 1
    died, after = json.loads((tmp_path / "found.json").read_text())
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
    """Knows one checkpoint, and keeps no proofs."""

    def __init__(self, size):
        self.size = size
        self.proofs = self

    async def kept(self, _after, _count):
        return []

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
    assert await keeper.tidy() == Forgotten(log_entries=first)
    assert (log.first, log.size) == (first, 30)
    assert await keeper.tidy() == Forgotten()


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
    gone = await keeper.tidy()
    found = [number for number in range(8) if await completions.get(f"c{number}") is not None]
    assert (found, gone) == (list(kept), Forgotten(completions=8 - len(kept)))


class History:
    """A peer's completions and ledger on disk, opened again and again; blocks go after the next snapshot."""

    def __init__(self, net, folder):
        self.net = net
        self._folder = folder
        self._blocks = 0

    async def open(self):
        offload = InlineOffload()
        self.ledger = await self.net.open(self._folder / "ledger.sqlite", keep_heights=1)
        self.completions = await Completions.open(self._folder / "completions.sqlite", TrioClock(0), offload)
        self.receipts = Receipts(Scoring(), self.completions, self.ledger)

    async def close(self):
        await self.ledger.close()
        await self.completions.close()

    async def add(self, name, signed, age_ms, *, own=True):
        await self.completions.add(name, "certified", "", signed, TimeMs(NOW_MS - age_ms), own=own)

    async def grow(self, heights):
        """So many blocks, a record in each."""
        until = self.ledger.height + heights
        while self.ledger.height < until:
            if await self.ledger.due_in() is None:
                self._blocks += 1
                self.net.observe_all(self.ledger, self.net.record(f"another {self._blocks}"))
            elif wait_s := await self.ledger.due_in():
                await trio.sleep(wait_s)
            if await self.ledger.due_in() == 0.0:
                await self.net.decide(self.ledger)

    async def tidy(self, **settings):
        config = HistoryConfig(**{"completions": 0, "days": 0, "log_entries": 0, **settings})
        keeper = Housekeeper(
            context=Context(),
            completions=self.completions,
            peer_log=await open_log(),
            ledger=self.ledger,
            config=config,
        )
        return await keeper.tidy()

    async def levels(self, *names):
        """How far the receipt of each completion goes, and it verifies; None for one that is not known."""
        found = []
        for name in names:
            try:
                status = await self.receipts.status(name)
            except NotFoundError:
                found.append(None)
                continue
            if status.receipt_json is not None:
                assert verify_receipt(status.receipt_json, self.net.genesis).level == status.state
            found.append(status.state)
        return found


class Scoring:
    """A peer that scores as the policy does."""

    def score_of(self, _leaf, _epoch):
        return 500_000


@pytest.fixture
async def history(ledger_network, tmp_path, autojump_clock):
    history = History(ledger_network(1, snapshot_heights=4), tmp_path)
    await history.open()
    yield history
    await history.close()


async def test_a_proof_stays_as_long_as_a_completion_stands_on_it(history):
    net = history.net
    old, shared, just, over = (net.record(f"own {number}", net.keys[0]) for number in range(4))
    theirs = net.record("theirs")
    await history.add("old", old, 40 * DAY_MS)
    await history.add("shared", shared, 40 * DAY_MS)
    await history.add("shared too", shared, 2 * DAY_MS)
    await history.add("just", just, 30 * DAY_MS)
    await history.add("over", over, 30 * DAY_MS + 1)
    await history.add("theirs", theirs, 40 * DAY_MS, own=False)
    history.ledger.want(theirs.record.digest())
    net.observe_all(history.ledger, old, shared, just, over, theirs)
    await history.grow(16)
    assert (await history.ledger.summary()).kept_from > 1
    names = ("old", "shared", "shared too", "just", "over", "theirs")
    assert await history.levels(*names) == ["anchored"] * 6
    assert await history.tidy(days=40) == Forgotten()
    assert await history.tidy(days=30) == Forgotten(completions=4, proofs=3)
    assert await history.tidy(days=30) == Forgotten()
    await history.close()
    await history.open()
    assert await history.levels(*names) == [None, None, "anchored", "anchored", None, None]
    kept = await history.ledger.proofs.kept(None, 99)
    assert kept == sorted(signed.record.digest() for signed in (shared, just))
    assert await history.tidy(days=1) == Forgotten(completions=2, proofs=2)
    assert await history.ledger.proofs.kept(None, 99) == []


async def test_a_proof_that_is_kept_after_its_completion_went_goes_too(history):
    early = history.net.record("early", history.net.keys[0])
    await history.add("early", early, 40 * DAY_MS)
    history.net.observe_all(history.ledger, early)
    await history.grow(2)
    assert await history.tidy(days=30) == Forgotten(completions=1)  # its block is still there
    await history.grow(16)
    assert await history.ledger.proofs.kept(None, 99) == [early.record.digest()]
    await history.close()
    await history.open()
    assert await history.tidy(days=30) == Forgotten(proofs=1)
    assert await history.ledger.proofs.of(early.record.digest()) is None


async def test_what_a_kill_left_between_the_two_files_goes_later(history, monkeypatch):
    monkeypatch.setattr(module, "PROOFS_AT_ONCE", 2)
    own = [history.net.record(f"own {number}", history.net.keys[0]) for number in range(5)]
    for number, signed in enumerate(own):
        await history.add(f"c{number}", signed, (40 - number) * DAY_MS)
    history.net.observe_all(history.ledger, *own)
    await history.grow(16)
    assert await history.completions.forget(NOW_MS, keep=2, keep_ms=0) == 3
    await history.close()
    await history.open()
    assert await history.tidy() == Forgotten(), "nothing goes where all is to be kept"
    assert await history.tidy(completions=2) == Forgotten(proofs=3)
    assert await history.levels("c2", "c3", "c4") == [None, "anchored", "anchored"]


async def test_an_answer_from_the_cache_has_a_receipt_however_old_its_block(history):
    net = history.net
    old = net.record("theirs")
    net.observe_all(history.ledger, old)
    await history.grow(2)
    scores = (await history.ledger.proofs.wait_certified(old)).scores
    await history.grow(16)
    assert await history.ledger.proofs.of(old.record.digest()) is None
    await history.completions.add("c1", "certified", "", old, NOW_MS, own=False, scores=scores)
    status = await history.receipts.status("c1")
    assert (status.state, status.final, status.height) == ("certified", True, scores.certificate.header.height)
    assert verify_receipt(status.receipt_json, net.genesis).level == "certified"
    # A peer that has not come to the block yet will have more to say.
    behind = Receipts(Scoring(), history.completions, await net.open())
    status = await behind.status("c1")
    assert (status.state, status.final) == ("certified", False)
