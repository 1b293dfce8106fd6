"""Waiting for a receipt: woken by blocks and by what is written of its record, and by nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from nsllm.ids import Digest
from nsllm.node.errors import NotFoundError
from nsllm.node.receipts import LOOK_AGAIN_S, Receipts
from nsllm.node.views import ReceiptStatus

RECORD, OTHER = Digest(b"\1" * 32), Digest(b"\2" * 32)


class Known(Receipts):
    """One completion, at the state that a test says."""

    def __init__(self) -> None:
        super().__init__(None, self, None)  # type: ignore[arg-type]
        self.state, self.final, self.looks = "pending", False, 0

    def watch_ended(self, watcher):
        self.watcher = watcher

    async def get(self, _completion_id):
        return SimpleNamespace(signed=SimpleNamespace(record=SimpleNamespace(digest=lambda: RECORD)))

    async def status(self, completion_id):
        await trio.lowlevel.checkpoint()
        if completion_id != "c1":
            raise NotFoundError("not given out here")
        self.looks += 1
        return ReceiptStatus("c1", self.state, "", None, None, (), None, None, final=self.final)


@pytest.fixture
def receipts():
    return Known()


async def waiting(receipts, nursery, level, timeout_s=60.0):
    """A task that waits; (state, after so many seconds) are put into the list."""
    got, began = [], trio.current_time()

    async def wait() -> None:
        status = await receipts.at("c1", level, timeout_s)
        got.append((status.state, trio.current_time() - began))

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    return got


@pytest.mark.parametrize("state", ["certified", "logged", "anchored", "none"])
async def test_a_block_that_settles_the_record_ends_the_wait(receipts, state, autojump_clock):
    async with trio.open_nursery() as nursery:
        got = await waiting(receipts, nursery, "certified")
        looks = receipts.looks
        await trio.sleep(1)
        receipts.decided([OTHER])
        await trio.sleep(1)
        assert (got, receipts.looks) == ([], looks)  # other records' blocks are none of its business
        receipts.state = state
        receipts.decided([OTHER, RECORD])
    assert got == [(state, 2.0)]


async def test_any_block_may_carry_a_record_further(receipts, autojump_clock):
    receipts.state = "logged"
    async with trio.open_nursery() as nursery:
        got = await waiting(receipts, nursery, "anchored")
        await trio.sleep(1)
        receipts.decided([])
        await trio.sleep(1)
        assert not got
        receipts.state = "anchored"
        receipts.decided([])
    assert got == [("anchored", 2.0)]


async def test_what_is_written_of_the_record_ends_the_wait(receipts, autojump_clock):
    async with trio.open_nursery() as nursery:
        one, other = (
            await waiting(receipts, nursery, "certified"),
            await waiting(receipts, nursery, "anchored"),
        )
        await trio.sleep(1)
        receipts.watcher(OTHER)
        receipts.state = "none"
        await trio.sleep(1)
        assert not one
        receipts.watcher(RECORD)
    assert one == other == [("none", 2.0)]


async def test_what_was_not_heard_of_is_seen_later(receipts, autojump_clock):
    async with trio.open_nursery() as nursery:
        got = await waiting(receipts, nursery, "certified")
        receipts.state = "logged"
    assert got == [("logged", LOOK_AGAIN_S)]


async def test_time_is_up(receipts, autojump_clock):
    async with trio.open_nursery() as nursery:
        got = await waiting(receipts, nursery, "certified", 2 * LOOK_AGAIN_S + 1)
    assert got == [("pending", 2 * LOOK_AGAIN_S + 1)]
    assert (await receipts.at("c1", "certified", 0)).state == "pending"
    assert receipts.looks < 10


async def test_what_comes_no_further_is_not_waited_for(receipts, autojump_clock):
    receipts.state, receipts.final = "certified", True
    assert (await receipts.at("c1", "anchored", 60)).state == "certified"
    assert trio.current_time() == 0


async def test_an_id_that_was_never_given_out(receipts):
    with pytest.raises(NotFoundError):
        await receipts.at("c2", "certified", 60)


def test_a_peer_looks_for_a_certificate_only_when_a_block_brings_it(on_stage, monkeypatch) -> None:
    async def play(stage) -> None:
        peer, looks, status = stage.peers[0], [], Receipts.status

        async def counted(self, completion_id):
            looks.append(trio.current_time())
            return await status(self, completion_id)

        monkeypatch.setattr(Receipts, "status", counted)
        completion = (await stage.ask(peer, "How do bridges carry weight?")).started.completion_id
        found = await peer.receipt_at(completion, "certified", 60)
        assert found.state == "logged"
        assert len(looks) <= 3  # at once, as a waiter, and with the block
        assert (await peer.receipt_at(completion, "anchored", 60)).state == "anchored"
        assert looks[-1] - looks[0] < LOOK_AGAIN_S

    on_stage(play)
