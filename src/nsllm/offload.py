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

    def background(self) -> Offload:
        """The same, for work that need not begin in the same moment: it interrupts nobody."""
        ...


class ThreadOffload:
    """Blocking work in trio's threads, at most `width` at a time.

    Args:
        width: of these and the background's together.
        patient: whether the work waits for its turn once it is woken, see `background`.
    """

    def __init__(self, width: int = 4, *, patient: bool = False) -> None:
        self._limiter = trio.CapacityLimiter(width)
        self._patient = patient

    async def run(self, work: Callable[[], R]) -> R:
        """Runs `work` in a thread and waits for it."""
        return await trio.to_thread.run_sync(_done, work, self._patient, limiter=self._limiter)

    def background(self) -> ThreadOffload:
        """The same threads, which take no processor from a thread that runs when they are woken for this work.

        The peer's own thread wakes them and goes on, holding the interpreter's lock: to interrupt it is to wait for it,
        which took a sixth of busy processors. Linux knows such threads (`sched(7)`, SCHED_BATCH).
        """
        offload = ThreadOffload(patient=True)
        offload._limiter = self._limiter
        return offload


_THREAD: Final = threading.local()


def _done(work: Callable[[], R], patient: bool) -> R:
    """`work`, in a thread that is as patient as it is to be."""
    if sys.platform == "linux" and getattr(_THREAD, "patient", False) != patient:
        _THREAD.patient = patient
        with contextlib.suppress(OSError):  # where it is forbidden, work is done all the same
            os.sched_setscheduler(0, os.SCHED_BATCH if patient else os.SCHED_OTHER, os.sched_param(0))
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

    def background(self) -> InTurn:
        """Itself: there is one line for all calls."""
        return self


class InlineOffload:
    """Blocking work at once, in the caller's turn: deterministic."""

    async def run(self, work: Callable[[], R]) -> R:
        """Yields once, then runs `work`."""
        await trio.lowlevel.checkpoint()
        return work()

    def background(self) -> InlineOffload:
        """Itself: there are no threads."""
        return self
