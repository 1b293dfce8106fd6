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
from nsllm.node.api.openai_errors import bad_request
from nsllm.node.api.requests import decode, read_body
from nsllm.node.errors import UnknownModelError
from nsllm.node.service import Vectors
from nsllm.record import EMBEDDING_DIMENSIONS, MAX_TEXT_CHARS

MAX_INPUTS: Final = 2048
"""OpenAI's limit."""
SLICE_INPUTS: Final = 32
"""Texts for one engine call: between two of them other requests have their turn, and a client that left is noticed."""


class EmbeddingsBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    visibility: Literal["private", "public"] | None = None


async def embeddings(request: web.Request) -> web.Response:
    """Vectors in the order of the inputs."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), EmbeddingsBody)
    texts = _texts(body.input)
    if body.dimensions not in {None, EMBEDDING_DIMENSIONS}:
        raise bad_request(
            f"'dimensions' is {body.dimensions}, the encoder makes {EMBEDDING_DIMENSIONS}", param="dimensions"
        )
    await _check_model(context, body.model)
    vectors: list[tuple[float, ...]] = []
    parts: list[Vectors] = []
    for at in range(0, len(texts), SLICE_INPUTS):
        part = texts[at : at + SLICE_INPUTS]
        parts.append(await context.bridge.call(partial(context.service.embed, part, body.visibility)))
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


def _texts(given: str | list[Any]) -> list[str]:
    items = [given] if isinstance(given, str) else given
    if not 1 <= len(items) <= MAX_INPUTS:
        raise bad_request(f"{len(items)} inputs, 1 to {MAX_INPUTS} are allowed", param="input")
    texts: list[str] = []
    for index, item in enumerate(items):
        at = "input" if isinstance(given, str) else f"input[{index}]"
        if isinstance(item, int | list):
            raise bad_request(
                "token arrays are not supported: tokenizers differ between models; send text",
                param="input",
                code="unsupported_parameter",
            )
        if not isinstance(item, str):
            raise bad_request(f"expected a string, got {type(item).__name__}", param=at, code="invalid_type")
        if not 1 <= len(item) <= MAX_TEXT_CHARS:
            raise bad_request(f"a text of {len(item)} characters, 1 to {MAX_TEXT_CHARS} are allowed", param=at)
        texts.append(item)
    return texts


async def _check_model(context: Context, name: str) -> None:
    known = [info.name for info in await context.bridge.call_sync(context.service.models)]
    if name not in known:
        raise UnknownModelError(
            f"no model {name[:256]!r} here", hint=f"this peer embeds for {', '.join(known)}", param="model"
        )


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
