"""One generation as its caller sees it: pieces as the worker makes them, the end, or an error."""

from __future__ import annotations

from typing import Literal

from nsllm.node.engine.jobs import Inbox
from nsllm.node.engine.port import Done, Piece
from nsllm.node.engine.protocol import Gain, PromptTold
from nsllm.record import Sampling


class AnswerStream:
    """Iterates over one generation: pieces, then `Done`. A caller who is late gets several steps' tokens in a piece.

    Args:
        inbox: of the job, its beginning taken out.
        prompt_token_ids: told at the end.
        sampling: effective parameters, told at the end.
    """

    def __init__(self, inbox: Inbox, prompt_token_ids: tuple[int, ...], sampling: Sampling) -> None:
        self._inbox = inbox
        self._prompt_token_ids = prompt_token_ids
        self._sampling = sampling
        self._reason: Literal["stop", "length"] | None = None
        """Why the generation has ended."""
        self._ended = False
        self._prompt_tokens: int | None = len(prompt_token_ids)
        """Told with the first piece."""

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Piece | Done:
        if self._ended:
            raise StopAsyncIteration
        if self._reason is not None:
            self._ended = True
            return Done(self._reason, self._prompt_token_ids, self._sampling)
        gain = await self._inbox.take()
        prompt_tokens, self._prompt_tokens = self._prompt_tokens, None
        if isinstance(gain, PromptTold):
            return Piece((), "", prompt=gain.tokens, prompt_tokens=prompt_tokens)
        assert isinstance(gain, Gain)
        token_ids, text, logprobs = gain.token_ids, gain.text, gain.logprobs
        while isinstance(more := self._inbox.take_now(), Gain):
            token_ids, text, logprobs = token_ids + more.token_ids, text + more.text, logprobs + more.logprobs
            gain = more
        self._reason = gain.reason
        return Piece(token_ids, text, logprobs, prompt_tokens=prompt_tokens)
