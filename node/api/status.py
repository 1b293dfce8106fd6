"""`GET /status.json`, `/peers`, `/events`, `/version` and `/load`: what pages, commands and balancers ask of a peer."""

from __future__ import annotations

import asyncio
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec
from aiohttp import web

from nsllm import __version__
from nsllm.ids import hex0x
from nsllm.node.api.bridge import ClosedError
from nsllm.node.api.context import CONTEXT
from nsllm.node.api.serving import SSE_HEADERS
from nsllm.node.errors import OverloadedError
from nsllm.node.views import PeerEvent


def to_json(value: object) -> Any:
    """A frozen snapshot as plain JSON values: bytes are `0x` hex, None stays null ("no data")."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: to_json(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, bytes):
        return hex0x(value)
    return value


async def status_json(request: web.Request) -> web.Response:
    """The whole status."""
    context = request.app[CONTEXT]
    status = await context.bridge.call(context.service.status)
    body = to_json(status)
    body["readiness"]["ready"] = status.readiness.ready
    stats = status.engine.stats
    if stats is not None:
        shown = body["engine"]["stats"]
        del shown["histograms"]  # they are for /metrics
        shown["outcomes"] = dict(stats.outcomes)
        shown.update(cache_usage=stats.cache_usage, hit_rate=stats.hit_rate)
    for row in body["engine"]["loaded"]:
        del row["stats"]  # those of the default model stand above, all of them in /metrics
    return _json(body)


async def version(_request: web.Request) -> web.Response:
    """This program's version, as vLLM tells its own."""
    return _json({"version": __version__})


async def load(request: web.Request) -> web.Response:
    """How many answers of this peer's models are under way, as vLLM tells it."""
    context = request.app[CONTEXT]
    return _json({"server_load": await context.bridge.call_sync(context.service.load)})


async def peers(request: web.Request) -> web.Response:
    """Known peers, this one first."""
    context = request.app[CONTEXT]
    rows = await context.bridge.call_sync(context.service.peers)
    return _json({"object": "list", "data": to_json(rows)})


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events named `peer` from now on, `data` the whole event. A slow page loses the oldest."""
    context = request.app[CONTEXT]
    settings = context.settings
    clients = context.metrics.event_clients
    if len(context.event_clients) >= settings.max_event_clients:
        raise OverloadedError(
            f"{settings.max_event_clients} pages follow the events already", hint="close one, or use /status.json"
        )
    who = object()
    context.event_clients.add(who)
    clients.set(len(context.event_clients))
    try:
        async with context.bridge.stream(
            context.service.events, depth=settings.page_queue_events, overflow="drop_oldest"
        ) as inbox:
            response = web.StreamResponse(headers=SSE_HEADERS)
            await response.prepare(request)
            await response.write(b"retry: 2000\n\n")
            while True:
                try:
                    async with asyncio.timeout(settings.event_keepalive_s):
                        event = await anext(inbox)
                except TimeoutError:
                    await response.write(b": still here\n\n")
                except (StopAsyncIteration, ClosedError):
                    return response
                else:
                    await response.write(_event(event))
    finally:
        context.event_clients.discard(who)
        clients.set(len(context.event_clients))


def _event(event: PeerEvent) -> bytes:
    return b"event: peer\ndata: " + msgspec.json.encode(to_json(event)) + b"\n\n"


def _json(body: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
