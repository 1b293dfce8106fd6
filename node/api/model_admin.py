"""`/admin/models`: the text models of a running peer, loaded and unloaded with the admin key."""

from __future__ import annotations

from functools import partial

from aiohttp import web
from msgspec import Struct

from nsllm.ids import hex0x
from nsllm.node.api.context import CONTEXT
from nsllm.node.api.requests import decode, read_body
from nsllm.node.engine.port import LoadedModel


class LoadBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /admin/models`."""

    model: str
    """Name in the store."""
    default: bool = False
    """Whether it answers where a request does not say."""


async def list_loaded(request: web.Request) -> web.Response:
    """What is loaded, the default model first, and the memory budget."""
    context = request.app[CONTEXT]
    shelf = await context.bridge.call_sync(context.service.loaded)
    rows = [_row(row, default=index == 0) for index, row in enumerate(shelf.models)]
    return web.json_response({"object": "list", "budget_mb": shelf.budget_mb, "data": rows})


async def load(request: web.Request) -> web.Response:
    """Load a model of the store; answers once its worker is ready. The same again changes nothing."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), LoadBody)
    row = await context.bridge.call(partial(context.service.load_model, body.model, default=body.default))
    shelf = await context.bridge.call_sync(context.service.loaded)
    return web.json_response(_row(row, default=shelf.models[0].model.name == row.model.name))


async def unload(request: web.Request) -> web.Response:
    """Unload a model; answers once its worker is gone."""
    context = request.app[CONTEXT]
    name = request.match_info["id"]
    await context.bridge.call(partial(context.service.unload_model, name))
    return web.json_response({"id": name, "object": "model", "deleted": True})


def _row(row: LoadedModel, *, default: bool) -> dict[str, object]:
    return {
        "id": row.model.name,
        "object": "model",
        "default": default,
        "digest": hex0x(row.model.digest),
        "dtype": row.model.dtype,
        "state": row.state,
        "active": row.active,
        "queued": row.queued,
        "memory_mb": row.memory_mb,
        "removable": row.removable,
    }
