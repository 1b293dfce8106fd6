"""`POST /v1/completions`: a text goes on, without the model's chat template."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from nsllm.node.api.completion_body import CompletionBody, completion_commands, picked_from, prompt_alone
from nsllm.node.api.formats import guide_names
from nsllm.node.api.requests import client_of, decode, read_body
from nsllm.node.api.serving import Asked, serve
from nsllm.node.api.text_answer import TextAnswer, Wanted, likeliest


async def completions(request: web.Request) -> web.StreamResponse:
    """One or several prompts, plain or as server-sent events."""
    body = decode(await read_body(request), CompletionBody)
    commands = completion_commands(body, client_of(request))
    count, picks = body.n or 1, picked_from(body)
    wanted = Wanted(
        echo=bool(body.echo),
        logprobs=body.logprobs,
        prompt_logprobs=body.prompt_logprobs,
        answer=not prompt_alone(body),
    )
    asked = Asked(
        commands=commands,
        kind="text_completion",
        chunk_kind="text_completion",
        make=partial(TextAnswer, wanted=wanted),
        stream=bool(body.stream),
        usage=body.told_usage(),
        choices_a_prompt=picks or count,
        renamed={**guide_names(body), **_names(body)},
        shown=tuple if picks is None else partial(likeliest, count=count, of=picks),
    )
    return await serve(request, asked)


def _names(body: CompletionBody) -> dict[str, str]:
    """Parameters as refusals name them, to the fields of this body that they come from."""
    names = {"messages": "prompt", "prompt_token_ids": "prompt"}
    if body.prompt_logprobs is None:
        names["prompt_logprobs"] = "logprobs"  # of an echo
    if body.logprobs is None:
        names["logprobs"] = "best_of"
    return names
