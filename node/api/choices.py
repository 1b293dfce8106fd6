"""Several answers to one request at once: the trio side of `n` choices, and of several prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from nsllm.errors import NsllmError
from nsllm.node.api.bridge import Speaker
from nsllm.node.chat import ChatCommand, ChatEvent
from nsllm.node.errors import OverloadedError
from nsllm.node.service import PeerService

AT_ONCE: Final = 8
"""Answers of one request that are asked for at the same time."""

Numbered = tuple[int, ChatEvent]
"""Which of the answers, and what happened."""


async def run_choices(service: PeerService, commands: Sequence[ChatCommand], speaker: Speaker[Numbered]) -> None:
    """Run all commands, as many at once as the peer takes; their events come as they happen.

    The first one goes ahead: once it has begun, the others find its prompt read. An answer that finds the queue full
    waits for another one of the same request to end. The first failure ends them all.

    Raises:
        NsllmError: what went wrong first; see `PeerService.answer`.
    """
    choices = _Choices(service, commands, speaker)
    await choices.run()
    if choices.failure is not None:
        raise choices.failure


class _Choices:
    """The answers of one request."""

    def __init__(self, service: PeerService, commands: Sequence[ChatCommand], speaker: Speaker[Numbered]) -> None:
        self._service = service
        self._commands = commands
        self._speaker = speaker
        self._places = trio.Semaphore(AT_ONCE)
        self._running = 0
        self._first_begun = trio.Event()
        self._one_ended = trio.Event()
        self.failure: NsllmError | None = None

    async def run(self) -> None:
        """Until all have ended or one has failed."""
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
        one = _Numbering(self._speaker, index, self._first_begun)
        try:
            await self._service.answer(self._commands[index], one)
        except OverloadedError:
            if one.begun or self._running == 1:
                raise
            return False
        finally:
            self._running -= 1
            self._one_ended.set()
            self._one_ended = trio.Event()
        return True


class _Numbering:
    """Listens to one of the answers."""

    def __init__(self, speaker: Speaker[Numbered], index: int, first_begun: trio.Event) -> None:
        self._speaker = speaker
        self._index = index
        self._first_begun = first_begun
        self.begun = False

    def send_nowait(self, event: ChatEvent, /) -> None:
        """Pass it on with its number."""
        self._speaker.send_nowait((self._index, event))
        self._passed()

    async def send(self, event: ChatEvent, /) -> None:
        """The same, as soon as there is room for it."""
        await self._speaker.send((self._index, event))
        self._passed()

    def _passed(self) -> None:
        self.begun = True
        self._first_begun.set()
