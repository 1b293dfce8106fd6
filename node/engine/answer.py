"""One generation as its caller sees it: the worker's replies turned into pieces, the end, or an error."""

from __future__ import annotations

from collections import deque

import trio

from nsllm.node.engine.port import Done, Piece
from nsllm.node.engine.protocol import Finished, FromWorker, Refused, Tokens
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError
from nsllm.record import Sampling


class AnswerStream:
    """Iterates over one generation: pieces, then `Done`."""

    def __init__(
        self,
        replies: trio.MemoryReceiveChannel[FromWorker],
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
        self._ended = False

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Piece | Done:
        if self._ended:
            raise StopAsyncIteration
        message = await next_reply(self._replies)
        if isinstance(message, Tokens):
            self._tokens += len(message.token_ids)
            return Piece(token_ids=message.token_ids, text=message.text)
        assert isinstance(message, Finished)
        self._ended = True
        self._finished.append((self._tokens, trio.current_time() - self._started_s))
        return Done(message.reason, self._prompt_token_ids, self._sampling)


async def next_reply(replies: trio.MemoryReceiveChannel[FromWorker]) -> FromWorker:
    """The next reply of a job.

    Raises:
        ContextOverflowError, InvalidRequestError: the worker refused the job.
        EngineError: the worker died.
    """
    try:
        message = await replies.receive()
    except trio.EndOfChannel:
        raise EngineError(
            "the model worker died over this request", hint="it is started again: ask once more"
        ) from None
    if isinstance(message, Refused):
        if message.kind == "overflow":
            raise ContextOverflowError(message.message, hint="shorten the conversation", param="messages")
        raise InvalidRequestError(message.message, param="messages")
    return message
