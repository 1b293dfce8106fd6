"""The Offload port: where blocking work (SQLite, FAISS, the EVM) runs.

In the real world that is a thread. In a simulation it is the caller's own turn, because trio's mock clock would jump
ahead while a real thread works.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import trio

R = TypeVar("R")


class Offload(Protocol):
    """Runs one blocking call without stalling the peer."""

    async def run(self, work: Callable[[], R]) -> R:
        """Result of `work()`; its exceptions pass through. A cancelled caller waits until the work has ended."""
        ...


class ThreadOffload:
    """Blocking work in trio's threads, at most `width` at a time."""

    def __init__(self, width: int = 4) -> None:
        self._limiter = trio.CapacityLimiter(width)

    async def run(self, work: Callable[[], R]) -> R:
        """Runs `work` in a thread and waits for it."""
        return await trio.to_thread.run_sync(_in_background, work, limiter=self._limiter)


_THREAD: Final = threading.local()


def _in_background(work: Callable[[], R]) -> R:
    """`work` in a thread that, once woken, waits for its turn instead of taking a processor from one that runs.

    The peer's own thread wakes it and goes on, holding the interpreter's lock: to interrupt it is to wait for it, which
    took a sixth of busy processors. Linux knows such threads (`sched(7)`, SCHED_BATCH), and what they start is so too.
    """
    if not getattr(_THREAD, "settled", False):
        _THREAD.settled = True
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # where it is forbidden, work is done all the same
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    return work()


class InTurn:
    """Another offload's work, one call after another: for what two threads must not touch at once.

    A SQLite connection has one transaction, whichever thread began it, and FAISS moves its memory as it grows.
    """

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._lock = trio.Lock()

    async def run(self, work: Callable[[], R]) -> R:
        """Waits for the calls before, in the order in which they came."""
        async with self._lock:
            return await self._offload.run(work)


class InlineOffload:
    """Blocking work at once, in the caller's turn: deterministic."""

    async def run(self, work: Callable[[], R]) -> R:
        """Yields once, then runs `work`."""
        await trio.lowlevel.checkpoint()
        return work()
