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
from nsllm.node.api.reply import reply_headers, usage
from nsllm.node.errors import ServiceError
from nsllm.node.service import ChatCommand, ChatDelta, ChatEvent, ChatFinished, ChatStarted

SSE_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
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
    include_usage: bool
    choices_a_prompt: int
    renamed: Mapping[str, str]
    """Parameters as the engine's refusals name them, to the fields of this request."""

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
        if error.param is not None:
            error.param = asked.renamed.get(error.param, error.param)
        raise


class _Reply:
    """A reply that is being made."""

    def __init__(self, request: web.Request, asked: Asked) -> None:
        self._request = request
        self._context: Context = request.app[CONTEXT]
        self._asked = asked
        self._answers = [asked.make(index, command) for index, command in enumerate(asked.commands)]
        self._several = len(self._answers) > 1
        self._frame: Frame | None = None
        self._response: web.StreamResponse | None = None

    async def whole(self) -> web.Response:
        """The reply in one piece."""
        async with self._open() as inbox:
            while (events := await self._next(inbox)) != []:
                for index, event in events or ():
                    self._take(self._answers[index], event)
        first = self._answers[0]
        described = about(first)
        assert first.started is not None
        body = {
            "id": first.started.completion_id,
            "object": self._asked.kind,
            "created": first.started.created_s,
            "model": first.started.model,
            "choices": [answer.choice(several=self._several) for answer in self._answers],
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
            failure = from_exception(error, where=f"{self._request.method} {self._request.path} (streaming)")
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
        tail = self._frame.usage(self._usage()) if self._asked.include_usage and self._frame is not None else b""
        await response.write(tail + b"data: [DONE]\n\n")
        return response

    async def _pass_on(self, events: Sequence[Numbered]) -> None:
        """All that has happened since the last time, in one write."""
        chunks: list[bytes] = []
        for index, event in events:
            answer = self._answers[index]
            if isinstance(event, ChatStarted):
                if self._frame is None:
                    self._frame = Frame(self._asked.chunk_kind, event, include_usage=self._asked.include_usage)
                chunks.append(answer.begin(self._frame))
            chunks.append(self._take(answer, event))
            if self._response is None and isinstance(event, ChatStarted):
                await self._opened(event)
        data = b"".join(chunks)
        if data and self._response is not None:
            await self._response.write(data)

    def _take(self, answer: Answer, event: ChatEvent) -> bytes:
        match event:
            case ChatDelta():
                return answer.delta(event)
            case ChatStarted():
                answer.started = event
                return b""
            case ChatFinished():
                answer.finished = event
                return answer.end(several=self._several, first=answer is self._answers[0])

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
