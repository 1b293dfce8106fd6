"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from nsllm.node.api.answers import ChatAnswer
from nsllm.node.api.chat_body import ChatBody, chat_commands
from nsllm.node.api.formats import guide_names
from nsllm.node.api.requests import client_of, decode, read_body
from nsllm.node.api.serving import Asked, serve


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """A conversation goes on, plain or as server-sent events."""
    body = decode(await read_body(request), ChatBody)
    commands = chat_commands(body, client_of(request))
    asked = Asked(
        commands=commands,
        kind="chat.completion",
        chunk_kind="chat.completion.chunk",
        make=partial(ChatAnswer, parallel=body.parallel_tool_calls is not False),
        stream=bool(body.stream),
        usage=body.told_usage(),
        choices_a_prompt=len(commands),
        renamed=guide_names(body),
    )
    return await serve(request, asked)
