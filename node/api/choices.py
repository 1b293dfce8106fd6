"""Several answers to one request at once: the trio side of `n` choices, and of several prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from nsllm.errors import NsllmError
from nsllm.node.errors import OverloadedError
from nsllm.node.service import ChatCommand, ChatEvent, PeerService

AT_ONCE: Final = 8
"""Answers of one request that are asked for at the same time."""
CHANNEL_LIMIT: Final = 64

Numbered = tuple[int, ChatEvent]
"""Which of the answers, and what happened."""


@asynccontextmanager
async def run_choices(
    service: PeerService, commands: Sequence[ChatCommand]
) -> AsyncGenerator[trio.MemoryReceiveChannel[Numbered]]:
    """Run all commands, as many at once as the peer takes; their events come as they happen.

    The first one goes ahead: once it has begun, the others find its prompt read. An answer that finds the queue full
    waits for another one of the same request to end. The first failure ends them all; leaving the context cancels them.

    Raises:
        NsllmError: on leaving, what went wrong first; see `PeerService.chat`.
    """
    send, receive = trio.open_memory_channel[Numbered](CHANNEL_LIMIT)
    choices = _Choices(service, commands, send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(choices.run)
        try:
            yield receive
        finally:
            nursery.cancel_scope.cancel()
            receive.close()
    if choices.failure is not None:
        raise choices.failure


class _Choices:
    """The answers of one request."""

    def __init__(
        self, service: PeerService, commands: Sequence[ChatCommand], send: trio.MemorySendChannel[Numbered]
    ) -> None:
        self._service = service
        self._commands = commands
        self._send = send
        self._places = trio.Semaphore(AT_ONCE)
        self._running = 0
        self._first_begun = trio.Event()
        self._one_ended = trio.Event()
        self.failure: NsllmError | None = None

    async def run(self) -> None:
        """Until all have ended or one has failed; then the channel ends."""
        with self._send:
            async with trio.open_nursery() as nursery:
                for index in range(len(self._commands)):
                    nursery.start_soon(self._run_one, index, nursery.cancel_scope)

    async def _run_one(self, index: int, all_of_them: trio.CancelScope) -> None:
        if index:
            await self._first_begun.wait()
        try:
            async with self._places:
                while not await self._attempt(index):
                    await self._one_ended.wait()
        except NsllmError as error:
            self.failure = self.failure or error
            all_of_them.cancel()

    async def _attempt(self, index: int) -> bool:
        """False if the queue is full and another answer of ours will leave it."""
        self._running += 1
        begun = False
        try:
            async with self._service.chat(self._commands[index]) as events:
                async for event in events:
                    begun = True
                    await self._send.send((index, event))
                    self._first_begun.set()
        except OverloadedError:
            if begun or self._running == 1:
                raise
            return False
        finally:
            self._running -= 1
            self._one_ended.set()
            self._one_ended = trio.Event()
        return True
