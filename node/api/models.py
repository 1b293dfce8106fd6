"""`GET /v1/models` and `GET /v1/models/{id}`: the chat models, the default one first, then the encoder."""

from __future__ import annotations

from aiohttp import web

from nsllm.ids import hex0x
from nsllm.node.api.context import CONTEXT, Context
from nsllm.node.engine.port import ModelInfo
from nsllm.node.errors import UnknownModelError


async def list_models(request: web.Request) -> web.Response:
    """All models that this peer serves."""
    context = request.app[CONTEXT]
    return web.json_response({"object": "list", "data": await _models(context)})


async def get_model(request: web.Request) -> web.Response:
    """One model by its id, which may contain slashes."""
    name = request.match_info["id"]
    models = await _models(request.app[CONTEXT])
    for model in models:
        if model["id"] == name:
            return web.json_response(model)
    known = ", ".join(str(model["id"]) for model in models)
    raise UnknownModelError(f"no model {name[:256]!r} here", hint=f"this peer serves {known}", param="model")


async def _models(context: Context) -> list[dict[str, object]]:
    infos = await context.bridge.call_sync(context.service.models)
    last = len(infos) - 1
    return [_model(info, context.started_s, encodes=index == last) for index, info in enumerate(infos)]


def _model(info: ModelInfo, created_s: int, *, encodes: bool) -> dict[str, object]:
    return {
        "id": info.name,
        "object": "model",
        "created": created_s,
        "owned_by": "nsllm",
        "root": info.name,
        "parent": None,
        "max_model_len": info.context_tokens,
        "nsllm": {
            "kind": "embedding" if encodes else "chat",
            "digest": hex0x(info.digest),
            "dtype": info.dtype,
            "context_tokens": info.context_tokens,
            "stand_in": info.stand_in,
            "upstream": info.upstream,
        },
    }
