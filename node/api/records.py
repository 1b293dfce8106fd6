"""What is decided about one record: `GET /v1/records/{digest}`, and `GET /admin/removals/{digest}`."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from nsllm.node.api.context import CONTEXT


async def standing(request: web.Request) -> web.Response:
    """Certified or not, revoked or not, with the proof of a retraction."""
    context = request.app[CONTEXT]
    return web.json_response(await context.bridge.call(partial(context.service.standing, request.match_info["digest"])))


async def removals(request: web.Request) -> web.Response:
    """Who has proved that it removed a revoked record: every member that stores records is asked."""
    context = request.app[CONTEXT]
    return web.json_response(await context.bridge.call(partial(context.service.removals, request.match_info["digest"])))
