"""`POST /v1/chat/completions`: plain and as server-sent events, one generation for each choice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
from aiohttp import web

from nsllm.node.api.bridge import Inbox
from nsllm.node.api.context import CONTEXT, Context
from nsllm.node.api.openai_errors import error_body, from_exception
from nsllm.node.api.requests import ChatBody, chat_commands, decode, read_body
from nsllm.node.service import ChatCommand, ChatDelta, ChatEvent, ChatFinished, ChatStarted, Source

SSE_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished generation."""

    started: ChatStarted
    text: str
    finished: ChatFinished


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer as OpenAI does, with `x-nsllm-*` headers and an `nsllm` object that say where the answer comes from."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), ChatBody)
    commands = chat_commands(body)
    if body.stream:
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return await _streamed(request, context, commands, include_usage=usage)
    # One after another: one request takes one place in the engine's queue, however many choices it asks for.
    answers = [await _collect(context, command) for command in commands]
    return web.Response(
        body=msgspec.json.encode(_completion(answers)),
        content_type="application/json",
        headers=_headers(answers[0].started),
    )


def _open(context: Context, command: ChatCommand) -> AbstractAsyncContextManager[Inbox[ChatEvent]]:
    """The bridged event stream of one command: waits for a slow reader, loses nothing."""
    return context.bridge.stream(partial(context.service.chat, command), depth=context.settings.chat_queue_events)


async def _collect(context: Context, command: ChatCommand) -> Answer:
    started: ChatStarted | None = None
    finished: ChatFinished | None = None
    pieces: list[str] = []
    async with _open(context, command) as events:
        async for event in events:
            match event:
                case ChatStarted():
                    started = event
                case ChatDelta():
                    pieces.append(event.text)
                case ChatFinished():
                    finished = event
    if started is None or finished is None:
        raise RuntimeError("a completion ended without its first or last event")
    return Answer(started, "".join(pieces), finished)


def _completion(answers: list[Answer]) -> dict[str, object]:
    first = answers[0]
    several = len(answers) > 1
    return {
        "id": first.started.completion_id,
        "object": "chat.completion",
        "created": first.started.created_s,
        "model": first.started.model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": answer.finished.finish_reason,
                **({"nsllm": nsllm_object(answer.started, answer.finished)} if several else {}),
            }
            for index, answer in enumerate(answers)
        ],
        "usage": _usage([answer.finished for answer in answers]),
        "nsllm": nsllm_object(first.started, first.finished),
    }


def _usage(finished: list[ChatFinished]) -> dict[str, int]:
    prompt = finished[0].prompt_tokens
    completion = sum(f.completion_tokens for f in finished)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def nsllm_object(started: ChatStarted, finished: ChatFinished) -> dict[str, object]:
    """What OpenAI's shape has no place for; `receipt` is None where there will be none."""
    has_receipt = finished.publication in {"pending", "certified"}
    return {
        "completion_id": started.completion_id,
        **_source(started.source),
        "visibility": started.visibility,
        "publication": finished.publication,
        "detail": finished.detail,
        "receipt": f"/v1/receipts/{started.completion_id}" if has_receipt else None,
    }


def _source(source: Source) -> dict[str, object]:
    return {
        "source": source.kind,
        "generator": source.generator,
        "score_ppm": source.score_ppm,
        "height": source.height,
        "age_ms": source.age_ms,
    }


def _headers(started: ChatStarted) -> dict[str, str]:
    """Headers that are known before the first token; a header without data is left out."""
    source = started.source
    headers = {
        "x-nsllm-completion-id": started.completion_id,
        "x-nsllm-source": source.kind,
        "x-nsllm-generator": source.generator,
        "x-nsllm-visibility": started.visibility,
    }
    if source.score_ppm is not None:
        headers["x-nsllm-score"] = score_text(source.score_ppm)
    if source.height is not None:
        headers["x-nsllm-height"] = str(source.height)
    return headers


def score_text(score_ppm: int) -> str:
    """A score as a header carries it: 0 to 1, exact.

    >>> score_text(812345)
    '0.812345'
    """
    return f"{score_ppm // 1_000_000}.{score_ppm % 1_000_000:06d}"


async def _streamed(
    request: web.Request, context: Context, commands: tuple[ChatCommand, ...], *, include_usage: bool
) -> web.StreamResponse:
    async with AsyncExitStack() as stack:
        # Until the first event an error still has a status of its own.
        events = await stack.enter_async_context(_open(context, commands[0]))
        started = await _first(events)
        response = web.StreamResponse(headers={**SSE_HEADERS, **_headers(started)})
        await response.prepare(request)
        try:
            finished: list[ChatFinished] = []
            async for chunk in _chunks(started, events, 0, finished, several=len(commands) > 1):
                await _send(response, chunk, include_usage=include_usage)
            for index, command in enumerate(commands[1:], start=1):
                async with _open(context, command) as more:
                    chunks = _chunks(await _first(more), more, index, finished, several=True, reply=started)
                    async for chunk in chunks:
                        await _send(response, chunk, include_usage=include_usage)
            if include_usage:
                await _send(response, {**_frame(started), "choices": [], "usage": _usage(finished)})
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the status is sent: the error goes into the stream
            failure = from_exception(error, where="POST /v1/chat/completions (streaming)")
            with suppress(ConnectionError):
                await _send(response, error_body(failure))
        with suppress(ConnectionError):
            await response.write_eof()
        return response


async def _first(events: Inbox[ChatEvent]) -> ChatStarted:
    async for event in events:
        if isinstance(event, ChatStarted):
            return event
        break
    raise RuntimeError("a completion's first event does not say what it is")


def _frame(reply: ChatStarted) -> dict[str, object]:
    return {
        "id": reply.completion_id,
        "object": "chat.completion.chunk",
        "created": reply.created_s,
        "model": reply.model,
    }


async def _chunks(
    started: ChatStarted,
    events: Inbox[ChatEvent],
    index: int,
    finished: list[ChatFinished],
    *,
    several: bool,
    reply: ChatStarted | None = None,
) -> AsyncIterator[dict[str, object]]:
    """Chunks of one choice; appends its last event to `finished`. All choices of a reply carry the first one's id."""
    frame = _frame(reply or started)

    def chunk(delta: dict[str, str], reason: str | None = None, **of_choice: object) -> dict[str, object]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason, **of_choice}
        return {**frame, "choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    async for event in events:
        match event:
            case ChatDelta(text=text) if text:
                yield chunk({"content": text})
            case ChatFinished(finish_reason=reason):
                finished.append(event)
                about = nsllm_object(started, event)
                last = chunk({}, reason, nsllm=about) if several else chunk({}, reason)
                yield {**last, "nsllm": about} if index == 0 else last
            case _:
                pass
    if len(finished) != index + 1:
        raise RuntimeError("a completion ended without its last event")


async def _send(response: web.StreamResponse, data: dict[str, object], *, include_usage: bool = False) -> None:
    if include_usage:
        data = {"usage": None, **data}
    await response.write(b"data: " + msgspec.json.encode(data) + b"\n\n")
