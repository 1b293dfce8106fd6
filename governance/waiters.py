"""Who waits for records to be settled, woken when a block may have done so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from nsllm.ids import Digest

T = TypeVar("T")


class Waiters:
    """Tasks by the record that they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[Digest, list[trio.Event]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    async def until(self, record: Digest, find: Callable[[], Awaitable[T | None]]) -> T:
        """What `find` gives for the record, asked now and again whenever the record's waiters are woken."""
        while True:
            # The waiter stands before the look-up, so that no commit falls between them.
            waiter = trio.Event()
            self._waiting.setdefault(record, []).append(waiter)
            try:
                found = await find()
                if found is not None:
                    return found
                await waiter.wait()
            finally:
                self._forget(record, waiter)

    def wake(self, records: Iterable[Digest]) -> None:
        """A block settled these records."""
        for record in records:
            for waiter in self._waiting.pop(record, ()):
                waiter.set()

    def wake_all(self) -> None:
        """Any record may have been settled."""
        self.wake(tuple(self._waiting))

    def _forget(self, record: Digest, waiter: trio.Event) -> None:
        waiting = self._waiting.get(record, [])
        if waiter in waiting:
            waiting.remove(waiter)
            if not waiting:
                del self._waiting[record]
