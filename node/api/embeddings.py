"""`POST /v1/embeddings`: unit vectors of the default encoder, as floats or base64."""

from __future__ import annotations

import base64
import struct
from functools import partial
from typing import Any, Final, Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from nsllm.node.api.context import CONTEXT, Context
from nsllm.node.api.fields import given_tokens, integer
from nsllm.node.api.openai_errors import bad_request
from nsllm.node.api.requests import decode, read_body
from nsllm.node.engine.card import ENCODER_TOKENS
from nsllm.node.engine.port import Readable
from nsllm.node.errors import UnknownModelError
from nsllm.node.service import Vectors
from nsllm.record import EMBEDDING_DIMENSIONS, MAX_TEXT_CHARS

MAX_INPUTS: Final = 2048
"""OpenAI's limit."""
LEAST_TOKENS: Final = 3
"""Of an input: encoders put one before and one behind each."""
SLICE_INPUTS: Final = 32
"""Texts for one engine call: between two of them other requests have their turn, and a client that left is noticed."""


class EmbeddingsBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    """As vLLM's encoders have it: the first so many tokens are read, not the last."""
    user: str | None = None
    visibility: Literal["private", "public"] | None = None


async def embeddings(request: web.Request) -> web.Response:
    """Vectors in the order of the inputs."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), EmbeddingsBody)
    texts = _inputs(body.input)
    most = _most_tokens(body.truncate_prompt_tokens)
    if body.dimensions not in {None, EMBEDDING_DIMENSIONS}:
        raise bad_request(
            f"'dimensions' is {body.dimensions}, the encoder makes {EMBEDDING_DIMENSIONS}", param="dimensions"
        )
    await _check_model(context, body.model, encoder=not all(isinstance(text, str) for text in texts))
    vectors: list[tuple[float, ...]] = []
    parts: list[Vectors] = []
    for at in range(0, len(texts), SLICE_INPUTS):
        part = texts[at : at + SLICE_INPUTS]
        work = partial(context.service.embed, part, body.visibility, most_tokens=most)
        parts.append(await context.bridge.call(work))
        vectors += parts[-1].vectors
    tokens, shared = sum(part.tokens for part in parts), sum(part.shared for part in parts)
    show = _base64 if body.encoding_format == "base64" else list
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": show(v)} for i, v in enumerate(vectors)],
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "nsllm": {"visibility": parts[0].visibility, "shared": shared},
    }
    headers = {"x-nsllm-visibility": parts[0].visibility}
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json", headers=headers)


def _most_tokens(sent: int | None) -> int | None:
    """Tokens that are read of each input; -1: as many as the encoder takes, which it does anyway."""
    if sent is None or sent == -1:
        return None
    return integer("truncate_prompt_tokens", sent, LEAST_TOKENS, ENCODER_TOKENS)


def _inputs(given: str | list[Any]) -> list[Readable]:
    """A text or several, tokens or several lists of them."""
    single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    items = [given] if single else given
    if not 1 <= len(items) <= MAX_INPUTS:
        raise bad_request(f"{len(items)} inputs, 1 to {MAX_INPUTS} are allowed", param="input")
    return [_input(item, "input" if single else f"input[{index}]") for index, item in enumerate(items)]


def _input(item: Any, at: str) -> Readable:
    if isinstance(item, list):
        return given_tokens(item, at)
    if not isinstance(item, str):
        raise bad_request(f"expected a string, got {type(item).__name__}", param=at, code="invalid_type")
    if not 1 <= len(item) <= MAX_TEXT_CHARS:
        raise bad_request(f"a text of {len(item)} characters, 1 to {MAX_TEXT_CHARS} are allowed", param=at)
    return item


async def _check_model(context: Context, name: str, *, encoder: bool) -> None:
    """The encoder goes by the chat models' names too, but for tokens, which it would misread (`encoder`)."""
    known = [info.name for info in await context.bridge.call_sync(context.service.models)]
    if encoder and name in known[:-1]:
        said = f"token ids are read as the encoder's: name {known[-1]!r} as the model, or send text"
        raise bad_request(said, param="model")
    if name not in known:
        raise UnknownModelError(
            f"no model {name[:256]!r} here", hint=f"this peer embeds for {', '.join(known)}", param="model"
        )


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
