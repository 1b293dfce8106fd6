"""`POST /tokenize` and `POST /detokenize`, as vLLM has them: what a prompt's tokens are, and what tokens spell."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from nsllm.node.api.context import CONTEXT
from nsllm.node.api.fields import given_tokens, model_name, refuse_unless
from nsllm.node.api.messages import ChatMessage, conversation
from nsllm.node.api.openai_errors import bad_request
from nsllm.node.api.parts import PartsReader
from nsllm.node.api.rendering_fields import rendering
from nsllm.node.api.requests import decode, read_body
from nsllm.node.api.tool_fields import SentTool, tooling
from nsllm.node.chat import ChatCommand
from nsllm.node.errors import ServiceError
from nsllm.record import MAX_TEXT_CHARS, Message, Sampling

UNSERVED: Final[dict[str, tuple[Any, ...]]] = {
    "chat_template": (),
    "mm_processor_kwargs": ({},),
}
"""Fields that are accepted only at these values, which change nothing."""


class TokenizeBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /tokenize`: a prompt, or a conversation."""

    model: str = "default"
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[SentTool] | None = None
    add_special_tokens: bool | None = None
    """Of a prompt, true where nothing is said; a conversation's template has them anyway."""
    return_token_strs: bool | None = None
    """Tells each token as the vocabulary writes it, too."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class DetokenizeBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /detokenize`."""

    tokens: list[int]
    model: str = "default"


async def tokenize(request: web.Request) -> web.Response:
    """Tokens as the model would read them, how many, and how many its context holds."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), TokenizeBody)
    command = _command(body)
    special = body.add_special_tokens is not False
    tokens, most = await context.bridge.call(partial(context.service.tokenize, command, special=special))
    strs = None
    if body.return_token_strs:
        strs = await context.bridge.call(partial(context.service.token_strs, command.model, tokens))
    return _json({"count": len(tokens), "max_model_len": most, "tokens": tokens, "token_strs": strs})


async def detokenize(request: web.Request) -> web.Response:
    """The text of tokens, special ones left out."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), DetokenizeBody)
    tokens = given_tokens(body.tokens, "tokens") if body.tokens else ()
    work = partial(context.service.detokenize, model_name(body.model), tokens)
    try:
        return _json({"prompt": await context.bridge.call(work)})
    except ServiceError as error:
        error.param = "tokens" if error.param == "prompt_token_ids" else error.param
        raise


def _command(body: TokenizeBody) -> ChatCommand:
    refuse_unless(UNSERVED, body)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("send either 'prompt' or 'messages'", param="prompt")
    model = model_name(body.model)
    if body.messages is None:
        prompt = body.prompt or ""
        if len(prompt) > MAX_TEXT_CHARS:
            raise bad_request(f"a prompt of {len(prompt)} characters, the limit is {MAX_TEXT_CHARS}", param="prompt")
        asked = (Message(role="user", content=prompt),)
        if rendering(body, asked) is not None:
            raise bad_request("a prompt has no chat template: send 'messages'", param="chat_template_kwargs")
        return ChatCommand(model=model, messages=asked, sampling=Sampling(), visibility="private", form="text")
    reader = PartsReader()
    messages = conversation(body.messages, reader)
    return ChatCommand(
        model=model,
        messages=messages,
        sampling=Sampling(),
        visibility="private",
        tools=tooling(body.tools, None, parallel=None).tools,
        attached=tuple(reader.attached),
        rendering=rendering(body, messages),
    )


def _json(body: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
