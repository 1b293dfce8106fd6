"""One answer of an upstream as its caller sees it: chunks turned into pieces, the end, or an error."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Literal

import httpx
import trio

from nsllm.node.engine.port import Done, EngineRequest, Piece, TokenLogprob
from nsllm.node.engine.sse import EventReader
from nsllm.node.engine.upstream_wire import Chunk, Delta, Usage, parse_chunk, token_logprobs
from nsllm.node.errors import EngineError, InvalidRequestError
from nsllm.record import MAX_TEXT_CHARS

MAX_ANSWER_BYTES: Final = 64 << 20
"""Of one streamed answer, everything that wraps its text included: 200,000 chunks of 300 bytes."""
BEFORE_HINT: Final = "the upstream's log says why; llama-cpp-python meets a prompt that is too long like that"


class UpstreamAnswer:
    """Iterates over one generation: pieces without token ids, then `Done`. Whoever made the response closes it."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        request: EngineRequest,
        between_s: float,
        finished: deque[tuple[int, float]],
    ) -> None:
        """Read an open response.

        Args:
            body: bytes of the response as they come, not decompressed.
            request: what was asked for, `max_tokens` set.
            between_s: longest wait for the next piece.
            finished: tokens and seconds of the answer are added here at its end.
        """
        self._body = body
        self._request = request
        self._between_s = between_s
        self._finished = finished
        self._started_s = trio.current_time()
        self._reader = EventReader()
        self._events: deque[bytes] = deque()
        self._read_bytes = 0
        self._chunks = 0
        self._chars = 0
        self._reason: str | None = None
        self._usage: Usage | None = None
        self._first: Piece | Done | None = None
        self._calling: Literal["no", "named", "arguments"] = "no"
        """How far the tool call has come that is being written."""
        self._ended = False

    async def prime(self) -> None:
        """Wait for the first piece, with no time limit here; it is handed out first.

        Raises:
            NsllmError: see `__anext__`.
            httpx.TransportError: the connection broke.
        """
        self._first = await self._next()

    def __aiter__(self) -> UpstreamAnswer:
        return self

    async def __anext__(self) -> Piece | Done:
        """The next piece; `Done` is the last.

        Raises:
            EngineError: the upstream broke off, fell silent, or sent what is no completion.
            NsllmError: the upstream reports an error.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._ended:
            raise StopAsyncIteration
        try:
            with trio.fail_after(self._between_s):
                return await self._next()
        except trio.TooSlowError:
            raise EngineError(
                f"the upstream fell silent for {self._between_s:g} s in mid-answer", hint="ask again"
            ) from None
        except httpx.TransportError as error:
            raise EngineError(
                f"the upstream broke off in mid-answer ({type(error).__name__})", hint="ask again"
            ) from None

    async def _next(self) -> Piece | Done:
        while self._reason is None:
            chunk = await self._chunk()
            if chunk is None and self._chunks == 0:
                raise EngineError("the upstream ended its answer before its first token", hint=BEFORE_HINT)
            if chunk is None:
                raise EngineError("the upstream ended its answer without saying why", hint="ask again")
            self._chunks += 1
            piece = self._take(chunk)
            if piece is not None:
                return piece
        return await self._done()

    def _take(self, chunk: Chunk) -> Piece | None:
        """What a chunk adds; None if it is no progress."""
        self._usage = chunk.usage or self._usage
        text, progress = "", False
        told: list[TokenLogprob] = []
        for choice in chunk.choices or ():
            self._reason = choice.finish_reason or self._reason
            delta = choice.delta or Delta()
            text += (delta.content or "") + (choice.text or "") + self._calls(delta)
            progress |= bool(delta.reasoning_content or delta.reasoning or delta.tool_calls)
            if self._request.top_logprobs is not None:
                told += token_logprobs(choice)
        if self._reason is not None and self._reason != "length":  # what is cut off stays open
            text += self._end_of_call()
        if not text and not progress and not told:
            return None
        kept = text[: MAX_TEXT_CHARS - self._chars]
        self._chars += len(kept)
        if len(kept) < len(text):  # no record holds more: the answer ends here
            self._reason = "length"
            self._events.clear()
        return Piece((), kept, tuple(told))

    def _calls(self, delta: Delta) -> str:
        """Tool calls as text, as a model writes them that is told of its tools in words."""
        text = ""
        for call in delta.tool_calls or ():
            function = call.function
            if function is not None and function.name:
                text += self._end_of_call()
                text += "\n" if self._chars or text else ""
                text += f'<tool_call>\n{{"name": {json.dumps(function.name, ensure_ascii=False)}, "arguments": '
                self._calling = "named"
            if function is not None and function.arguments and self._calling != "no":
                text += function.arguments
                self._calling = "arguments"
        return text

    def _end_of_call(self) -> str:
        ends = {"no": "", "named": "{}}\n</tool_call>", "arguments": "}\n</tool_call>"}
        text, self._calling = ends[self._calling], "no"
        return text

    async def _done(self) -> Done:
        if self._reason not in {"stop", "length", "tool_calls"}:
            raise InvalidRequestError(
                "the upstream withheld its answer or ended it for a reason that is not served here",
                hint="ask in another way",
            )
        while self._chars < MAX_TEXT_CHARS and (chunk := await self._chunk()) is not None:
            self._usage = chunk.usage or self._usage  # it comes after the last choice
        self._ended = True
        counted = None if self._usage is None else (self._usage.prompt_tokens, self._usage.completion_tokens)
        if counted is not None:
            self._finished.append((counted[1], trio.current_time() - self._started_s))
        return Done("length" if self._reason == "length" else "stop", (), self._request.sampling, counted)

    async def _chunk(self) -> Chunk | None:
        """The next chunk; None at `[DONE]` or at the end of the body."""
        while not self._events:
            try:
                data = await anext(self._body)
            except StopAsyncIteration:
                return None
            self._read_bytes += len(data)
            if self._read_bytes > MAX_ANSWER_BYTES:
                raise EngineError(f"the upstream sent more than {MAX_ANSWER_BYTES >> 20} MiB for one answer")
            self._events.extend(self._reader.feed(data))
        event = self._events.popleft()
        return None if event == b"[DONE]" else parse_chunk(event)
