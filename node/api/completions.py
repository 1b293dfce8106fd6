"""`POST /v1/completions`: a text goes on, without the model's chat template."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from nsllm.node.api.answers import TextAnswer
from nsllm.node.api.completion_body import CompletionBody, completion_commands
from nsllm.node.api.formats import guide_names
from nsllm.node.api.requests import client_of, decode, read_body
from nsllm.node.api.serving import Asked, serve


async def completions(request: web.Request) -> web.StreamResponse:
    """One or several prompts, plain or as server-sent events."""
    body = decode(await read_body(request), CompletionBody)
    commands = completion_commands(body, client_of(request))
    asked = Asked(
        commands=commands,
        kind="text_completion",
        chunk_kind="text_completion",
        make=partial(TextAnswer, echo=bool(body.echo)),
        stream=bool(body.stream),
        include_usage=body.includes_usage(),
        choices_a_prompt=body.n or 1,
        renamed={**guide_names(body), "messages": "prompt"},
    )
    return await serve(request, asked)
