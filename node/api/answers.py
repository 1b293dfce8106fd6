"""One answer of a reply on its way to the client: events in, chunks out, or the whole choice at the end.

A chunk of text is what the peer makes most of, one a token: all of it but the text is encoded once an answer.
"""

from __future__ import annotations

import random
from typing import Final, Literal, Protocol

import msgspec

from nsllm.node.api.logprobs import Telling, chat_logprobs, prompt_logprobs
from nsllm.node.api.reply import nsllm_object
from nsllm.node.chat import ChatCommand, ChatDelta, ChatFinished, ChatStarted
from nsllm.node.engine.port import PromptToken, TokenLogprob
from nsllm.node.engine.tools import CallArguments, CallStarted, ContentDelta, ToolCallStream, ToolEvent

_encode: Final = msgspec.json.Encoder().encode


class Frame:
    """What all chunks of a reply have in common.

    Args:
        kind: `object` of a chunk.
        reply: of the answer whose id the reply carries.
        include_usage: every chunk has a null `usage`.
    """

    def __init__(self, kind: str, reply: ChatStarted, *, include_usage: bool) -> None:
        common: dict[str, object] = {
            "id": reply.completion_id,
            "object": kind,
            "created": reply.created_s,
            "model": reply.model,
        }
        self._head = b"data: " + _encode(common)[:-1] + b","
        self._blank = b'"usage":null,' if include_usage else b""

    def choice(self, choice: dict[str, object], **more: object) -> bytes:
        """A chunk of one choice."""
        further = b"," + _encode(more)[1:-1] if more else b""
        return self._head + self._blank + b'"choices":[' + _encode(choice) + b"]" + further + b"}\n\n"

    def around(self, choice: dict[str, object], blank: bytes) -> tuple[bytes, bytes]:
        """The same before and after the only `blank` in the encoded choice."""
        before, _, after = self.choice(choice).partition(blank)
        return before, after

    def usage(self, usage: dict[str, int]) -> bytes:
        """The last chunk."""
        return self._head + b'"choices":[],"usage":' + _encode(usage) + b"}\n\n"


class Answer(Protocol):
    """One choice of a reply."""

    index: int
    started: ChatStarted | None
    finished: ChatFinished | None

    def begin(self, frame: Frame) -> bytes:
        """From now on chunks are wanted, in this frame; the first one. The answer has `started`."""
        ...

    def delta(self, event: ChatDelta) -> bytes:
        """Take a piece of the answer; its chunks, if they are wanted."""
        ...

    def end(self, *, several: bool, first: bool) -> bytes:
        """Take the end, `finished`; the last chunks, if they are wanted."""
        ...

    def choice(self, *, several: bool) -> dict[str, object]:
        """The whole choice, after `end`."""
        ...

    def beside(self) -> dict[str, object]:
        """What the reply says of its first answer beside the choice, after `end`."""
        ...


def about(answer: Answer) -> dict[str, object]:
    """The answer's `nsllm` object.

    Raises:
        RuntimeError: the answer has not begun or not ended.
    """
    if answer.started is None or answer.finished is None:
        raise RuntimeError("an answer ended without its first or last event")
    return nsllm_object(answer.started, answer.finished)


def shown_ids(token_ids: tuple[int, ...]) -> list[int] | None:
    """Tokens as clients read them; None where they are unknown."""
    return list(token_ids) or None


class ChatAnswer:
    """A choice of `/v1/chat/completions`, with the tool calls that its text holds."""

    def __init__(self, index: int, command: ChatCommand, *, parallel: bool = True) -> None:
        self.started: ChatStarted | None = None
        self.finished: ChatFinished | None = None
        self.index = index
        self._names = [tool.name for tool in command.tools]
        self._parallel = parallel
        self._tells = command.top_logprobs is not None
        self._prompt: list[PromptToken] | None = None if command.prompt_logprobs is None else []
        self._tells_ids = command.return_token_ids
        self._calls: ToolCallStream | None = None
        self._texts: list[str] = []
        self._telling = Telling()
        self._logprobs: list[TokenLogprob] = []
        """Those that are to be told next, or, of a whole reply, all of them."""
        self._frame: Frame | None = None
        self._before = self._after = b""

    def begin(self, frame: Frame) -> bytes:
        """See `Answer`; the first chunk says the role."""
        self._frame = frame
        self._before, self._after = frame.around(self._chunk({"content": 0}), b'"content":0')
        self._before += b'"content":'
        return frame.choice(self._chunk({"role": "assistant", "content": ""}))

    def delta(self, event: ChatDelta) -> bytes:
        """See `Answer`."""
        if self._prompt is not None:
            self._prompt.extend(event.prompt)
        told = self._telling.take(event)
        if self._names:
            self._logprobs.extend(told)
            return self._tool_chunks(self._reader().push(event.text))
        if self._frame is None:
            self._texts.append(event.text)
            self._logprobs.extend(told)
            return b""
        if told:
            return self._frame.choice(self._chunk({"content": event.text}, told=told))
        return self._before + _encode(event.text) + self._after if event.text else b""

    def end(self, *, several: bool, first: bool) -> bytes:
        """See `Answer`."""
        assert self.finished is not None
        self._logprobs.extend(self._telling.rest(self.finished))
        chunks = self._tool_chunks(self._reader().finish()) if self._names else b""
        if self._frame is None:
            return chunks
        own = about(self)
        last = self._chunk({}, self._reason(), told=self._logprobs) | self._token_ids()
        if several:
            last["nsllm"] = own
        beside = {"nsllm": own, **self.beside()} if first else {}
        return chunks + self._frame.choice(last, **beside)

    def choice(self, *, several: bool) -> dict[str, object]:
        """See `Answer`."""
        own = about(self)
        message: dict[str, object] = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        calls = self._called()
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = calls
        choice: dict[str, object] = {
            "index": self.index,
            "message": message,
            "logprobs": chat_logprobs(self._logprobs) if self._tells else None,
            "finish_reason": self._reason(),
            **self._token_ids(),
        }
        return {**choice, "nsllm": own} if several else choice

    def beside(self) -> dict[str, object]:
        """See `Answer`; all choices of this shape have one prompt."""
        told: dict[str, object] = {}
        if self._prompt is not None:
            told["prompt_logprobs"] = prompt_logprobs(self._prompt)
        if self._tells_ids and self.finished is not None:
            told["prompt_token_ids"] = shown_ids(self.finished.prompt_token_ids)
        return told

    def _token_ids(self) -> dict[str, object]:
        if not self._tells_ids or self.finished is None:
            return {}
        return {"token_ids": shown_ids(self.finished.token_ids)}

    def _reader(self) -> ToolCallStream:
        if self._calls is None:
            assert self.started is not None
            # The answer's id is drawn by chance: calls of the same answer have the same ids wherever it is read.
            self._calls = ToolCallStream(self._names, random.Random(self.started.completion_id))  # noqa: S311 - no secret
        return self._calls

    def _called(self) -> list[dict[str, object]]:
        calls = self._calls.calls if self._calls is not None else ()
        return [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in (calls if self._parallel else calls[:1])
        ]

    def _reason(self) -> Literal["stop", "length", "content_filter", "tool_calls"]:
        assert self.finished is not None
        reason = self.finished.finish_reason
        return "tool_calls" if reason == "stop" and self._calls is not None and self._calls.calls else reason

    def _tool_chunks(self, events: list[ToolEvent]) -> bytes:
        chunks = [self._tool_chunk(event) for event in events]
        return b"".join(chunks)

    def _tool_chunk(self, event: ToolEvent) -> bytes:
        match event:
            case ContentDelta(text=text):
                if self._frame is None:
                    self._texts.append(text)
                    return b""
                delta: dict[str, object] = {"content": text}
            case CallStarted(index=index) | CallArguments(index=index) if index and not self._parallel:
                return b""
            case CallStarted(index=index, id=call_id, name=name):
                called = {"name": name, "arguments": ""}
                delta = {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": called}]}
            case CallArguments(index=index, text=text):
                delta = {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        if self._frame is None:
            return b""
        told, self._logprobs = self._logprobs, []
        return self._frame.choice(self._chunk(delta, told=told))

    def _chunk(
        self, delta: dict[str, object], reason: str | None = None, told: list[TokenLogprob] | None = None
    ) -> dict[str, object]:
        logprobs = chat_logprobs(told) if told and self._tells else None
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
