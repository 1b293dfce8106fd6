"""One reply to one request, plain or as server-sent events, whatever its shape and however many answers it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from nsllm.node.api.answers import Answer, Frame, about
from nsllm.node.api.bridge import Inbox
from nsllm.node.api.choices import Numbered, run_choices
from nsllm.node.api.context import CONTEXT, Context
from nsllm.node.api.openai_errors import error_body, from_exception
from nsllm.node.api.reply import ToldUsage, reply_headers, usage, usage_so_far
from nsllm.node.chat import ChatCommand, ChatDelta, ChatEvent, ChatFinished, ChatStarted
from nsllm.node.errors import InvalidRequestError, ServiceError

SSE_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
MAX_PROMPT_ENTRIES: Final = 400_000
"""Tokens and alternatives told of all prompts of a request: some 60 MB, or two prompts of 8,192 tokens with 20 each."""
UNCOUNTED: Final = b'"usage":null,"choices":['
"""As a `Frame` writes it; it stands nowhere else, because quotes within texts are escaped."""
HEARTBEAT: Final = b": the answer is on its way\n\n"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    commands: tuple[ChatCommand, ...]
    kind: str
    """`object` of the reply; chunks of a chat have one of their own."""
    chunk_kind: str
    make: Callable[[int, ChatCommand], Answer]
    """A choice by its index and command."""
    stream: bool
    usage: ToldUsage
    choices_a_prompt: int
    """Answers that are generated to one prompt."""
    renamed: Mapping[str, str]
    """Parameters as the engine's refusals name them, to the fields of this request."""
    shown: Callable[[Sequence[Answer]], Sequence[Answer]] = tuple
    """Of a whole reply's answers, those that are told, in their order."""

    def named(self, error: Exception) -> Exception:
        """The same error, with the name of this request's field where it has the engine's."""
        if isinstance(error, ServiceError) and error.param is not None:
            error.param = self.renamed.get(error.param, error.param)
        return error

    def prompt_tokens(self, answers: Sequence[Answer]) -> int:
        """Tokens of all prompts, each counted once however many answers it has."""
        first = answers[:: self.choices_a_prompt]
        return sum(answer.finished.prompt_tokens for answer in first if answer.finished is not None)


async def serve(request: web.Request, asked: Asked) -> web.StreamResponse:
    """Answer as OpenAI does, with `x-nsllm-*` headers and an `nsllm` object that say where the answer comes from."""
    reply = _Reply(request, asked)
    try:
        return await (reply.stream() if asked.stream else reply.whole())
    except ServiceError as error:
        raise asked.named(error) from None


class _Reply:
    """A reply that is being made."""

    def __init__(self, request: web.Request, asked: Asked) -> None:
        self._request = request
        self._context: Context = request.app[CONTEXT]
        self._asked = asked
        self._answers = [asked.make(index, command) for index, command in enumerate(asked.commands)]
        self._several = len(self._answers) > 1
        self._frame: Frame | None = None
        self._prompt_entries = 0
        self._response: web.StreamResponse | None = None

    async def whole(self) -> web.Response:
        """The reply in one piece."""
        async with self._open() as inbox:
            while (events := await self._next(inbox)) != []:
                for index, event in events or ():
                    self._take(self._answers[index], event)
        shown = self._asked.shown(self._answers)
        for index, answer in enumerate(shown):
            answer.index = index
        first = shown[0]
        described = about(first)
        assert first.started is not None
        body = {
            "id": first.started.completion_id,
            "object": self._asked.kind,
            "created": first.started.created_s,
            "model": first.started.model,
            "choices": [answer.choice(several=len(shown) > 1) for answer in shown],
            "usage": self._usage(),
            "nsllm": described,
            **first.beside(),
        }
        return web.Response(
            body=msgspec.json.encode(body), content_type="application/json", headers=reply_headers(first.started)
        )

    async def stream(self) -> web.StreamResponse:
        """The reply as it is made. Until the first event, or the first heartbeat, an error has a status of its own."""
        try:
            response = await self._written()
        except asyncio.CancelledError:
            raise
        except ConnectionError:  # the caller is gone: there is nobody to tell, and nothing is wrong here
            return self._response or web.Response()
        except Exception as error:
            if self._response is None:
                raise
            # The status is sent: the error goes into the stream.
            response = self._response
            failure = from_exception(
                self._asked.named(error), where=f"{self._request.method} {self._request.path} (streaming)"
            )
            with suppress(ConnectionError):
                await response.write(b"data: " + msgspec.json.encode(error_body(failure)) + b"\n\n")
        with suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _written(self) -> web.StreamResponse:
        """All of the stream but its end."""
        async with self._open() as inbox:
            while (events := await self._next(inbox)) != []:
                if events is None:
                    response = await self._opened(None)
                    await response.write(HEARTBEAT)
                else:
                    await self._pass_on(events)
        if not all(answer.finished for answer in self._answers):
            raise RuntimeError("an answer ended without its last event")
        response = await self._opened(None)
        tail = self._frame.usage(self._usage()) if self._asked.usage != "never" and self._frame is not None else b""
        await response.write(tail + b"data: [DONE]\n\n")
        return response

    async def _pass_on(self, events: Sequence[Numbered]) -> None:
        """All that has happened since the last time, in one write."""
        chunks: list[bytes] = []
        for index, event in events:
            answer = self._answers[index]
            if isinstance(event, ChatStarted):
                if self._frame is None:
                    self._frame = Frame(self._asked.chunk_kind, event, include_usage=self._asked.usage != "never")
                answer.started = event
                chunks.append(self._counted(answer, event, answer.begin(self._frame)))
            chunks.append(self._counted(answer, event, self._take(answer, event)))
            if self._response is None and isinstance(event, ChatStarted):
                await self._opened(event)
        data = b"".join(chunks)
        if data and self._response is not None:
            await self._response.write(data)

    def _take(self, answer: Answer, event: ChatEvent) -> bytes:
        match event:
            case ChatDelta():
                if event.prompt:
                    self._bound(event)
                return answer.delta(event)
            case ChatStarted():
                answer.started = event
                return b""
            case ChatFinished():
                answer.finished = event
                return answer.end(several=self._several, first=answer is self._answers[0])

    def _counted(self, answer: Answer, event: ChatEvent, chunks: bytes) -> bytes:
        """Chunks of an event, with its answer's usage so far if they are to tell it and it is known."""
        if self._asked.usage != "always" or not chunks or answer.started is None:
            return chunks
        prompt, tokens = answer.started.prompt_tokens, 0
        if isinstance(event, ChatFinished):
            prompt, tokens = event.prompt_tokens, event.completion_tokens
        elif isinstance(event, ChatDelta):
            prompt, tokens = (prompt, event.tokens) if event.tokens else (None, 0)
        if prompt is None:
            return chunks
        said = b'"usage":' + msgspec.json.encode(usage_so_far(prompt, tokens)) + b',"choices":['
        return chunks.replace(UNCOUNTED, said)

    def _bound(self, event: ChatDelta) -> None:
        """What is told of prompts is held here until the reply is written: it must not fill the memory."""
        self._prompt_entries += sum(1 + len(token.top) for token in event.prompt)
        if self._prompt_entries > MAX_PROMPT_ENTRIES:
            said = f"more than {MAX_PROMPT_ENTRIES} probabilities of prompts in one reply"
            raise InvalidRequestError(
                said, param="prompt_logprobs", hint="ask for fewer alternatives, or send less at once"
            )

    async def _opened(self, started: ChatStarted | None) -> web.StreamResponse:
        """The response with its headers on the way; those of the answer too, if it has begun by then."""
        if self._response is None:
            about_answer = {} if started is None else reply_headers(started)
            self._response = web.StreamResponse(headers={**SSE_HEADERS, **about_answer})
            await self._response.prepare(self._request)
        return self._response

    def _open(self) -> AbstractAsyncContextManager[Inbox[Any]]:
        """The events: the peer waits for a slow reader, nothing is lost. One answer alone has no numbers."""
        context, commands = self._context, self._asked.commands
        depth = context.settings.chat_queue_events
        if self._several:
            return context.bridge.listen(partial(run_choices, context.service, commands), depth=depth)
        return context.bridge.listen(partial(context.service.answer, commands[0]), depth=depth)

    async def _next(self, inbox: Inbox[Any]) -> list[Numbered] | None:
        """What has happened; nothing at the end; None if nothing did for so long that a proxy may grow impatient."""
        events = await inbox.take(self._context.settings.heartbeat_s)
        if events is None:
            return None
        return events if self._several else [(0, event) for event in events]

    def _usage(self) -> dict[str, int]:
        finished = [answer.finished for answer in self._answers if answer.finished is not None]
        return usage(self._asked.prompt_tokens(self._answers), finished)
