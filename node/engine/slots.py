"""Who may generate: a number of places, a queue of limited length, clients in turns."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from nsllm.node.engine.turns import Turns
from nsllm.node.errors import OverloadedError

REMEMBERED: Final = 32
"""Last stays that the time to wait is taken from."""
LONGEST_RETRY_S: Final = 60
"""What a refused caller is told to wait at most."""


class _Waiter:
    """A caller in the queue."""

    __slots__ = ("admitted", "client", "told")

    def __init__(self, client: str) -> None:
        self.client = client
        self.told = trio.Event()
        self.admitted = False


class Slots:
    """Places for generations.

    Places are given in turns between clients, and to each client in the order it asked. Where the queue is full,
    whoever has most in it gives way: the last of that client is refused if the newcomer's client then still has no
    more.

    Args:
        places: generations at once.
        queue: callers that may wait.
        most_wait_s: a caller that would wait longer, as fast as places were given back of late, is refused.
    """

    def __init__(self, places: int, queue: int, most_wait_s: float | None = None) -> None:
        self._places = places
        self._queue = queue
        self._most_wait_s = math.inf if most_wait_s is None else most_wait_s
        self._taken = 0
        self._turns = Turns[_Waiter]()
        self._stays_s: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def taken(self) -> int:
        """Places that somebody has."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return len(self._turns)

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Have a place for the block.

        Raises:
            OverloadedError: on entering: the queue is full; says when to come again.
        """
        await self._take(client)
        started_s = trio.current_time()
        try:
            yield
        finally:
            self._stays_s.append(trio.current_time() - started_s)
            self._give_back()

    def retry_after_s(self) -> int:
        """Whole seconds until all that wait now will have a place."""
        return max(1, min(LONGEST_RETRY_S, math.ceil(self._wait_s())))

    def _wait_s(self) -> float:
        """What a newcomer would wait, as fast as places were given back of late; 0 as long as none was."""
        if not self._stays_s:
            return 0.0
        return (len(self._turns) + 1) * sum(self._stays_s) / len(self._stays_s) / self._places

    async def _take(self, client: str) -> None:
        if self._taken < self._places:
            self._taken += 1
            return
        if len(self._turns) >= self._queue or self._wait_s() > self._most_wait_s:
            self._make_room(client)
        waiter = _Waiter(client)
        self._turns.add(client, waiter)
        try:
            await waiter.told.wait()
        except trio.Cancelled:
            self._turns.remove(client, waiter)  # once told, nobody is cancelled here any more
            raise
        if not waiter.admitted:
            raise self._overloaded()

    def _give_back(self) -> None:
        """Pass the place on, or leave it free."""
        if self._turns:
            waiter = self._turns.take()
            waiter.admitted = True
            waiter.told.set()
        else:
            self._taken -= 1

    def _make_room(self, client: str) -> None:
        """Refuse somebody: the last of those who have most in the queue, or this caller."""
        if self._turns:
            longest = self._turns.longest()
            if self._turns.line(longest) > self._turns.line(client) + 1:
                last = self._turns.last(longest)
                self._turns.remove(longest, last)
                last.told.set()
                return
        raise self._overloaded()

    def _overloaded(self) -> OverloadedError:
        seconds = self.retry_after_s()
        error = OverloadedError(
            f"{self._taken} answers are being written and {len(self._turns)} wait",
            hint=f"try again in {seconds} s",
        )
        error.retry_after_s = seconds
        return error
