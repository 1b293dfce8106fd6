"""Jobs in a worker: each has an inbox, which one task empties; whatever the worker says goes into the right one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import assert_never

import trio

from nsllm.errors import EncodingError
from nsllm.node.engine.link import WorkerLink
from nsllm.node.engine.protocol import (
    Cancel,
    Detokenized,
    Embedded,
    Gain,
    Judged,
    PromptTold,
    Refused,
    Retraced,
    Started,
    Step,
    Tokenized,
    ToWorker,
)
from nsllm.node.engine.stats import Timing
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError

Reply = Started | PromptTold | Gain | Embedded | Judged | Retraced | Tokenized | Detokenized


class Inbox:
    """Replies to one job. Whoever fills it never waits; one task at a time empties it.

    A memory channel would do the same at three times the cost, and there is one message a token.
    """

    __slots__ = ("_error", "_replies", "_task", "timing")

    def __init__(self, timing: Timing | None) -> None:
        self.timing = timing
        """Of a generation."""
        self._replies: deque[Reply] = deque()
        self._task: trio.lowlevel.Task | None = None
        """That waits."""
        self._error: Exception | None = None

    def put(self, reply: Reply) -> None:
        """One more reply."""
        self._replies.append(reply)
        self._wake()

    def close(self, error: Exception) -> None:
        """No reply comes any more: `error` follows those that are there."""
        self._error = error
        self._wake()

    async def take(self) -> Reply:
        """The next reply.

        Raises:
            ContextOverflowError, InvalidRequestError: the worker refused the job.
            EngineError: the worker died, or failed over this job.
        """
        if not self._replies:
            await self._wait()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._replies:
            return self._replies.popleft()
        assert self._error is not None
        raise self._error

    def take_now(self) -> Reply | None:
        """The next reply, if it is there."""
        return self._replies.popleft() if self._replies else None

    async def _wait(self) -> None:
        if self._error is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        self._task = trio.lowlevel.current_task()

        def abort(_raise: Callable[[], None]) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self) -> None:
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None


class Jobs:
    """All jobs in the worker that runs now."""

    def __init__(self) -> None:
        self._inboxes: dict[int, Inbox] = {}
        """Of jobs that still expect something."""
        self._numbers = itertools.count(1)

    @contextmanager
    def open(self, link: WorkerLink, make: Callable[..., ToWorker], timing: Timing | None = None) -> Iterator[Inbox]:
        """Post a job; its replies. Leaving early cancels it in the worker.

        Raises:
            InvalidRequestError: it is too long.
        """
        job = next(self._numbers)
        try:
            link.post(make(job=job))
        except EncodingError as error:
            raise InvalidRequestError(f"the request is too long: {error.message}", hint="send less at once") from None
        inbox = self._inboxes[job] = Inbox(timing)
        try:
            yield inbox
        finally:
            if self._inboxes.pop(job, None) is not None:
                link.post(Cancel(job=job))

    def step(self, step: Step) -> None:
        """Hand out what a step of the worker gained."""
        now_s = trio.current_time()
        for gain in step.gains:
            inbox = self._inboxes.get(gain.job)
            if inbox is None:
                continue  # it has left
            if inbox.timing is not None:
                inbox.timing.gained(now_s, len(gain.token_ids))
            if gain.reason is not None:
                del self._inboxes[gain.job]
                if inbox.timing is not None:
                    inbox.timing.finished(gain.reason)
            inbox.put(gain)

    def give(
        self, reply: Started | PromptTold | Embedded | Judged | Retraced | Tokenized | Detokenized | Refused
    ) -> None:
        """Hand out another reply, unless its job has left."""
        inbox = self._inboxes.get(reply.job)
        if inbox is None:
            return
        match reply:
            case Started():
                if inbox.timing is not None:
                    inbox.timing.started(trio.current_time(), len(reply.prompt_token_ids))
                inbox.put(reply)
            case PromptTold():
                inbox.put(reply)
            case Embedded() | Judged() | Retraced() | Tokenized() | Detokenized():
                del self._inboxes[reply.job]
                inbox.put(reply)
            case Refused():
                del self._inboxes[reply.job]
                _end(inbox, _error(reply))
            case _:
                assert_never(reply)

    def end(self) -> None:
        """The worker is gone."""
        for inbox in self._inboxes.values():
            _end(
                inbox, EngineError("the model worker died over this request", hint="it is started again: ask once more")
            )
        self._inboxes.clear()


def _end(inbox: Inbox, error: Exception) -> None:
    if inbox.timing is not None:
        inbox.timing.failed()
    inbox.close(error)


def _error(refused: Refused) -> Exception:
    match refused.kind:
        case "overflow":
            return ContextOverflowError(refused.message, hint="shorten the conversation", param=refused.param)
        case "invalid":
            return InvalidRequestError(refused.message, param=refused.param)
        case "failed":
            return EngineError(f"the model worker failed over this request: {refused.message}")
