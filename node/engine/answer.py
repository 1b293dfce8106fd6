"""One generation as its caller sees it: the worker's replies turned into pieces, the end, or an error."""

from __future__ import annotations

from collections import deque
from typing import Literal

import trio

from nsllm.node.engine.port import Done, Piece
from nsllm.node.engine.protocol import Embedded, Gain, Judged, Refused, Started
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError
from nsllm.record import Sampling

Reply = Started | Gain | Embedded | Judged | Refused
"""What a job hears from its worker."""


class AnswerStream:
    """Iterates over one generation: pieces, then `Done`."""

    def __init__(
        self,
        replies: trio.MemoryReceiveChannel[Reply],
        prompt_token_ids: tuple[int, ...],
        sampling: Sampling,
        finished: deque[tuple[int, float]],
    ) -> None:
        self._replies = replies
        self._prompt_token_ids = prompt_token_ids
        self._sampling = sampling
        self._finished = finished
        self._started_s = trio.current_time()
        self._tokens = 0
        self._reason: Literal["stop", "length"] | None = None
        """Why the generation has ended."""
        self._ended = False

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Piece | Done:
        if self._ended:
            raise StopAsyncIteration
        if self._reason is not None:
            self._ended = True
            self._finished.append((self._tokens, trio.current_time() - self._started_s))
            return Done(self._reason, self._prompt_token_ids, self._sampling)
        gain = await next_reply(self._replies)
        assert isinstance(gain, Gain)
        self._tokens += len(gain.token_ids)
        self._reason = gain.reason
        return Piece(token_ids=gain.token_ids, text=gain.text, logprobs=gain.logprobs)


async def next_reply(replies: trio.MemoryReceiveChannel[Reply]) -> Reply:
    """The next reply of a job.

    Raises:
        ContextOverflowError, InvalidRequestError: the worker refused the job.
        EngineError: the worker died, or failed over this job.
    """
    try:
        message = await replies.receive()
    except trio.EndOfChannel:
        raise EngineError(
            "the model worker died over this request", hint="it is started again: ask once more"
        ) from None
    if isinstance(message, Refused):
        if message.kind == "overflow":
            raise ContextOverflowError(message.message, hint="shorten the conversation", param=message.param)
        if message.kind == "failed":
            raise EngineError(f"the model worker failed over this request: {message.message}")
        raise InvalidRequestError(message.message, param=message.param)
    return message
