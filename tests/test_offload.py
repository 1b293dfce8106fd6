"""Blocking work: in threads several at once, in turn one after another."""

from __future__ import annotations

import errno
import os
import threading

import pytest
import trio
import trio.testing

from nsllm.offload import InTurn, ThreadOffload


async def test_in_turn_nobody_overlaps_and_the_order_stays() -> None:
    offload, inside, seen = InTurn(ThreadOffload()), threading.Semaphore(1), []

    def work(number: int) -> None:
        assert inside.acquire(blocking=False), "two at once"
        seen.append(number)
        inside.release()

    async with trio.open_nursery() as nursery:
        for number in range(50):
            await trio.lowlevel.checkpoint()
            nursery.start_soon(offload.run, lambda number=number: work(number))
    assert sorted(seen) == list(range(50))


async def test_an_error_lets_the_next_one_go_on() -> None:
    offload = InTurn(ThreadOffload())
    with pytest.raises(ZeroDivisionError):
        await offload.run(lambda: 1 // 0)
    assert await offload.run(lambda: 7) == 7


async def test_who_is_cancelled_waits_for_what_has_begun(autojump_clock) -> None:
    began, go_on, done = trio.Event(), trio.Event(), []

    class Slow:
        async def run(self, work):
            began.set()
            with trio.CancelScope(shield=True):
                await go_on.wait()
            done.append(work())

    offload = InTurn(Slow())
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await offload.run(lambda: 1)

        nursery.start_soon(first)
        await began.wait()
        nursery.start_soon(offload.run, lambda: 2)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        go_on.set()
    assert done == [1, 2]


async def test_background_work_interrupts_nobody(monkeypatch) -> None:
    """A thread gives way while it works in the background, and as little as any other when it does not."""
    now: dict[int, int] = {}
    monkeypatch.setattr(
        os, "sched_setscheduler", lambda _, policy, __: now.__setitem__(threading.get_ident(), policy), raising=False
    )
    monkeypatch.setattr("nsllm.offload._THREAD", threading.local())
    offload = ThreadOffload(width=1)
    background = offload.background()

    def policy() -> int:
        return now.get(threading.get_ident(), os.SCHED_OTHER)

    for each, expected in ((offload, os.SCHED_OTHER), (background, os.SCHED_BATCH)) * 2:
        assert await each.run(policy) == expected
    assert threading.get_ident() not in now


async def test_the_background_has_no_room_of_its_own() -> None:
    offload = ThreadOffload(width=1)
    go_on = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(offload.run, go_on.wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(offload.background().run, threading.get_ident)
        await trio.testing.wait_all_tasks_blocked()
        assert offload._limiter.statistics().tasks_waiting == 1
        go_on.set()


async def test_work_is_done_where_threads_may_not_choose(monkeypatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden, raising=False)
    monkeypatch.setattr("nsllm.offload._THREAD", threading.local())
    assert await ThreadOffload().background().run(lambda: 1) == 1
