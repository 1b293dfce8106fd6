"""The Offload port: where blocking work (SQLite, FAISS, the EVM) runs.

In the real world that is a thread. In a simulation it is the caller's own turn, because trio's mock clock would jump
ahead while a real thread works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

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
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


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
