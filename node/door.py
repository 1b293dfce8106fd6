"""The door: who would probably wait too long for an answer is refused before anything is sent, and can go elsewhere.

An answer waits until it begins (its question is read, embedded and judged, and gets a place in the engine), it is
written, and it is judged again. Each newcomer is behind all that wait, and in the last stretch, where one is judged
after the other, behind all that get there: answers from the cache do not, and how many of those inside will be such is
taken from the last ones. Both times are estimated at the pace of the last answers, whatever it was that set it; the
longer one counts.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from nsllm.node.chat import ChatEvent, ChatStarted, Listener
from nsllm.node.config import EngineConfig
from nsllm.node.engine.slots import LONGEST_RETRY_S
from nsllm.node.errors import OverloadedError
from nsllm.node.line_time import REMEMBERED, LineTime

MOST_EXCESS: Final = 2
"""So many times as long as is allowed may those clients wait that have little inside."""


class Visit:
    """An answer that was let in: tells its listener what happens, and the door how far it is."""

    def __init__(self, door: Door, client: str, listener: Listener) -> None:
        """Use `Door.visit`."""
        self._door = door
        self._listener = listener
        self.client = client
        self.scope = trio.CancelScope()
        self.begun = False
        """Something of it was sent: it gives way to nobody any more."""
        self.written = False

    def send_nowait(self, event: ChatEvent, /) -> None:
        """Pass it on. Raises `trio.WouldBlock` if too much waits already, or it has to leave."""
        self._begin(event)
        self._listener.send_nowait(event)

    async def send(self, event: ChatEvent, /) -> None:
        """Pass it on, as soon as there is room for it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begin(event)
        await self._listener.send(event)

    def write_ended(self) -> None:
        """All of its text is there; what is left is to judge it."""
        self.written = True
        self._door.note_written()

    def _begin(self, event: ChatEvent) -> None:
        if self.begun or not isinstance(event, ChatStarted):
            return
        if self.scope.cancel_called:
            raise trio.WouldBlock
        self.begun = True
        self._door.note_begun(self)


class Door:
    """Lets answers in.

    Where a newcomer would wait too long, the client with most answers inside gives way: the last of those that have
    not begun is refused if the newcomer's client then still has no more. Where all of them have begun, the newcomer is
    let in nevertheless if its client has less than half as many, and the wait is less than twice too long: so a client
    that asks seldom comes in beside one that floods. Else the newcomer is refused.

    Args:
        most_wait_s: longest time that an answer may probably wait.
        most: answers inside at once.
    """

    def __init__(self, most_wait_s: float, most: int) -> None:
        self._most_wait_s = most_wait_s
        self._most = most
        self._inside = Counter[str]()
        self._waiting: list[Visit] = []
        """Not begun, in the order in which they came."""
        self._beginning = LineTime(at_once=True)
        self._judging = LineTime()
        self._judged: deque[bool] = deque(maxlen=REMEMBERED)
        """Of the last answers that ended well: whether they were judged."""

    @classmethod
    def of(cls, config: EngineConfig) -> Door:
        """As an engine's settings say: while it is full, as many again are read before it or judged after it."""
        return cls(config.max_wait_s, 2 * (config.max_active + config.max_queue))

    @property
    def inside(self) -> int:
        """Answers that were let in and have not ended."""
        return self._inside.total()

    def wait_s(self) -> float:
        """What a newcomer would probably wait."""
        now_s, judging = trio.current_time(), self._judging.inside
        share = (sum(self._judged) + 1) / (len(self._judged) + 1)
        ahead = judging + math.ceil(share * (self.inside - judging))
        return max(self._beginning.wait_s(self._beginning.inside, now_s), self._judging.wait_s(ahead, now_s))

    @contextmanager
    def visit(self, client: str, listener: Listener) -> Iterator[Visit]:
        """Have an answer inside for the block.

        Args:
            client: who asks.
            listener: hears of the answer.

        Raises:
            OverloadedError: on entering, or within the block as long as nothing was sent; says when to come again.
        """
        wait_s = self.wait_s()
        if self.inside >= self._most or wait_s > self._most_wait_s:
            self._make_room(client, seldom=self.inside < self._most and wait_s <= MOST_EXCESS * self._most_wait_s)
        visit = Visit(self, client, listener)
        self._inside[client] += 1
        self._waiting.append(visit)
        self._beginning.enter(trio.current_time())
        passed = False
        try:
            with visit.scope:
                yield visit
                passed = True
        finally:
            self._leave(visit, passed=passed)
        if visit.scope.cancelled_caught:
            raise self._overloaded()

    def note_begun(self, visit: Visit) -> None:
        """Something of it is sent."""
        self._waiting.remove(visit)
        self._beginning.leave(trio.current_time())

    def note_written(self) -> None:
        """One more is judged."""
        self._judging.enter(trio.current_time())

    def _leave(self, visit: Visit, *, passed: bool) -> None:
        now_s = trio.current_time()
        if not visit.begun:
            if visit in self._waiting:
                self._waiting.remove(visit)
            self._beginning.leave(now_s, passed=False)
        if visit.written:
            self._judging.leave(now_s, passed=passed)
        if passed:
            self._judged.append(visit.written)
        self._inside[visit.client] -= 1
        if not self._inside[visit.client]:
            del self._inside[visit.client]

    def _make_room(self, client: str, *, seldom: bool) -> None:
        """Refuse somebody: the last that waits of those who have most inside, or this caller.

        Nobody, if `seldom` and this caller's client has little inside beside another one.
        """
        own = self._inside[client] + 1
        longer = [one for one in self._waiting if self._inside[one.client] > own and not one.scope.cancel_called]
        if not longer:
            if seldom and 2 * own < max(self._inside.values(), default=0):
                return
            raise self._overloaded()
        most = max(self._inside[one.client] for one in longer)
        next(one for one in reversed(longer) if self._inside[one.client] == most).scope.cancel()

    def _overloaded(self) -> OverloadedError:
        seconds = max(1, min(LONGEST_RETRY_S, math.ceil(self.wait_s())))
        error = OverloadedError(
            f"{self.inside} answers are under way, and another one would wait about {seconds} s",
            hint=f"try again in {seconds} s",
        )
        error.retry_after_s = seconds
        return error
