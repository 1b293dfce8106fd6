"""The one bridge between aiohttp's thread (asyncio) and the peer's loop (trio).

An asyncio handler asks for a trio call or a trio stream and awaits it; nothing else crosses. Requests go over by
`TrioToken.run_sync_soon`, answers come back by `call_soon_threadsafe`. A handler that ends or is cancelled cancels its
trio side at once; when trio is cancelled, every waiting handler gets `ClosedError` and the thread ends.

Waking the other thread costs more than what it is woken for: a system call, and a struggle for the interpreter. So all
that trio's tasks say in one turn goes over with one wake-up, and a reader tells of what it took in bunches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, TypeVar

import trio

from nsllm.node.errors import NotReadyError

R = TypeVar("R")
T = TypeVar("T")

Overflow = Literal["wait", "drop_oldest"]
"""What happens when the reader is behind: the trio side waits (nothing is lost), or the oldest items go."""


class ClosedError(NotReadyError):
    """The peer is shutting down: its trio side ended while a request waited."""

    def __init__(self) -> None:
        super().__init__("the peer is shutting down", hint="ask again once it is back")


@dataclass(frozen=True, slots=True)
class _Value(Generic[R]):
    value: R


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class Inbox(Generic[T]):
    """Asyncio end of a stream: iterate until the trio side ends; an error there is raised here."""

    def __init__(self, *, depth: int, taken: Callable[[int], None]) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._taken = taken
        self._untold = 0
        """Items that were taken and of which the trio side does not know yet."""
        self._end: Exception | bool = False
        self._waiter: asyncio.Future[None] | None = None
        self.dropped = 0
        """Items that a slow reader lost (`drop_oldest` only)."""

    def __aiter__(self) -> Inbox[T]:
        return self

    async def __anext__(self) -> T:
        if not await self._filled():
            raise StopAsyncIteration
        item = self._items.popleft()
        self._tell(1)
        return item

    async def take(self, idle_s: float) -> list[T] | None:
        """All items that are there, at least one; none at the end; None if nothing came for `idle_s` seconds."""
        loop = asyncio.get_running_loop()
        timer = None if self._items else loop.call_later(idle_s, self._wake)
        try:
            if not self._items and not await self._woken():
                return [] if self._end else None
        finally:
            if timer is not None:
                timer.cancel()
        items = list(self._items)
        self._items.clear()
        self._tell(len(items))
        return items

    async def _filled(self) -> bool:
        """Wait until there is an item; False at the end. Raises the trio side's error."""
        while not self._items:
            if not await self._woken() and self._end:
                return False
        return True

    async def _woken(self) -> bool:
        """Wait for the next item, the end, or a timer; True if there is an item. Raises the trio side's error."""
        if not self._end:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if not self._items and isinstance(self._end, Exception):
            raise self._end
        return bool(self._items)

    def _tell(self, count: int) -> None:
        self._untold += count
        if self._untold * 2 >= self._depth:
            self._taken(self._untold)
            self._untold = 0

    def put(self, item: T) -> None:
        """Append; beyond `depth` the oldest goes (a waiting trio side never gets that far)."""
        if len(self._items) >= self._depth:
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._wake()

    def end(self, error: Exception | None) -> None:
        """No more items: the reader stops after those that are queued, with `error` if there is one."""
        self._end = error or True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Speaker(Generic[T]):
    """Trio end of a stream; says at most `depth` items (None: any number) more than its reader has taken."""

    def __init__(self, put: Callable[[T], None], depth: int | None) -> None:
        self._put = put
        self._left = depth
        self._more = trio.Event()

    def send_nowait(self, item: T, /) -> None:
        """Say `item`. Raises `trio.WouldBlock` if the reader is behind."""
        if self._left is not None:
            if self._left == 0:
                raise trio.WouldBlock
            self._left -= 1
        self._put(item)

    async def send(self, item: T, /) -> None:
        """Say `item`, once the reader is near enough."""
        while self._left == 0:
            self._more = trio.Event()
            await self._more.wait()
        self.send_nowait(item)

    def allow(self, count: int) -> None:
        """The reader took `count` items."""
        if self._left is not None:
            self._left += count
            self._more.set()


class _Outbox:
    """What trio says to asyncio: collected during a turn of trio's tasks, and handed over at once by `run`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posts: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self._wake = trio.Event()
        self._closed = False

    def post(self, work: Callable[..., object], *args: object) -> None:
        """Have `work(*args)` called in the asyncio thread, after what was posted before."""
        self._posts.append((work, args))
        if self._closed:
            self._hand_over()
        elif len(self._posts) == 1:
            self._wake.set()

    async def run(self) -> None:
        """Hand over until cancelled; from then on every post goes by itself."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                self._hand_over()
        finally:
            self._closed = True
            self._hand_over()

    def _hand_over(self) -> None:
        posts, self._posts = self._posts, []
        with suppress(RuntimeError):  # the asyncio loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_do_all, posts)


def _do_all(posts: list[tuple[Callable[..., object], tuple[object, ...]]]) -> None:
    for work, args in posts:
        work(*args)


class Bridge:
    """Trio calls and streams for asyncio handlers. Made by `run_beside`; its methods run in the asyncio thread."""

    def __init__(
        self, *, nursery: trio.Nursery, token: trio.lowlevel.TrioToken, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._nursery = nursery
        self._token = token
        self._loop = loop
        self._outbox = _Outbox(loop)
        self._post = self._outbox.post
        nursery.start_soon(self._outbox.run)

    async def call(self, work: Callable[[], Awaitable[R]]) -> R:
        """Result of `await work()` in trio; its exceptions are raised here. Cancelling this cancels `work`."""
        reply: asyncio.Future[R] = self._loop.create_future()
        scope = trio.CancelScope()

        async def run() -> None:
            outcome: _Value[R] | _Failed = _Failed(ClosedError())
            try:
                with scope:
                    try:
                        outcome = _Value(await work())
                    except Exception as error:  # noqa: BLE001 - carried over and raised in the handler
                        outcome = _Failed(_single(error))
            finally:
                self._post(_settle, reply, outcome)

        self._spawn(run)
        try:
            return await reply
        except asyncio.CancelledError:
            self._soon(scope.cancel)
            raise

    async def call_sync(self, work: Callable[[], R]) -> R:
        """Result of `work()` in the trio thread, for calls that do not wait."""

        async def wrapped() -> R:
            await trio.lowlevel.checkpoint_if_cancelled()
            return work()

        return await self.call(wrapped)

    @asynccontextmanager
    async def listen(
        self, work: Callable[[Speaker[T]], Awaitable[None]], *, depth: int, overflow: Overflow = "wait"
    ) -> AsyncIterator[Inbox[T]]:
        """What `await work(speaker)` says in trio, at most `depth` items in between. Leaving the context cancels it."""
        scope = trio.CancelScope()
        speaker: Speaker[T]
        inbox: Inbox[T] = Inbox(depth=depth, taken=lambda count: self._soon(partial(speaker.allow, count)))
        speaker = Speaker(partial(self._post, inbox.put), depth if overflow == "wait" else None)

        async def run() -> None:
            error: Exception | None = ClosedError()
            try:
                with scope:
                    try:
                        await work(speaker)
                        error = None
                    except Exception as caught:  # noqa: BLE001 - carried over and raised in the handler
                        error = _single(caught)
            finally:
                self._post(inbox.end, error)

        self._spawn(run)
        try:
            yield inbox
        finally:
            self._soon(scope.cancel)

    def stream(
        self,
        source: Callable[[], AbstractAsyncContextManager[trio.abc.ReceiveChannel[T]]],
        *,
        depth: int,
        overflow: Overflow = "wait",
    ) -> AbstractAsyncContextManager[Inbox[T]]:
        """Items of a trio channel, see `listen`."""

        async def pump(speaker: Speaker[T]) -> None:
            async with source() as receive:
                async for item in receive:
                    await speaker.send(item)

        return self.listen(pump, depth=depth, overflow=overflow)

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        # The nursery outlives the asyncio thread, so it is open whenever a handler can ask.
        self._soon(lambda: self._nursery.start_soon(task))

    def _soon(self, work: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(work)


def _settle(reply: asyncio.Future[R], outcome: _Value[R] | _Failed) -> None:
    if reply.done():
        return
    if isinstance(outcome, _Failed):
        reply.set_exception(outcome.error)
    else:
        reply.set_result(outcome.value)


def _single(error: Exception) -> Exception:
    """The one error inside a group that a nursery made of it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def run_beside(
    site: Callable[[Bridge], AbstractAsyncContextManager[None]],
    *,
    started: Callable[[], None],
) -> None:
    """Hold `site(bridge)` open in an asyncio loop of its own thread, until cancelled.

    `started` is called (in trio) once `site` has been entered. On cancellation every bridged call ends first, then
    `site` is left, then the thread; an exception of `site` is raised here in an exception group.
    """
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    up = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def signal_stop() -> None:
        with suppress(RuntimeError):  # the loop ended by itself
            loop.call_soon_threadsafe(stop.set)

    def thread(bridge: Bridge) -> None:
        async def main() -> None:
            async with site(bridge):
                token.run_sync_soon(up.set)
                await stop.wait()

        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    try:
        async with trio.open_nursery() as nursery:
            bridge = Bridge(nursery=nursery, token=token, loop=loop)

            async def hold_thread() -> None:
                # A limiter of its own: the thread lives as long as the peer and takes nobody's place.
                await trio.to_thread.run_sync(thread, bridge, limiter=trio.CapacityLimiter(1))

            nursery.start_soon(hold_thread)
            try:
                await up.wait()
                started()
                await trio.sleep_forever()
            finally:
                signal_stop()
    finally:
        if not loop.is_closed():
            loop.close()
