"""`GET /healthz`, `/readyz`, `/health` and `/ping`: for process managers and load balancers, without a key."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Final

from aiohttp import web

from nsllm.node.api.context import CONTEXT
from nsllm.node.api.openai_errors import ApiError

ANSWER_S: Final = 2.0
"""A peer's loop that does not come round in this time is stuck."""


async def healthz(request: web.Request) -> web.Response:
    """200 while the peer's own loop (not only the web thread) answers."""
    try:
        async with asyncio.timeout(ANSWER_S):
            await request.app[CONTEXT].bridge.call_sync(lambda: None)
    except TimeoutError:
        raise ApiError(503, f"the peer's loop did not answer in {ANSWER_S:g} s", "stuck", "server_error") from None
    return web.json_response({"status": "ok"})


async def health(request: web.Request) -> web.Response:
    """As vLLM's: 200 with nothing in it when the engine can answer, else 503, whatever the network does."""
    try:
        async with asyncio.timeout(ANSWER_S):
            readiness = await request.app[CONTEXT].bridge.call_sync(request.app[CONTEXT].service.readiness)
    except TimeoutError:
        raise ApiError(503, f"the peer's loop did not answer in {ANSWER_S:g} s", "stuck", "server_error") from None
    return web.Response(status=200 if readiness.engine else 503)


async def readyz(request: web.Request) -> web.Response:
    """200 when genesis, engine and quorum are there, else 503; the body says which is missing."""
    context = request.app[CONTEXT]
    readiness = await context.bridge.call_sync(context.service.readiness)
    body = {"ready": readiness.ready, **asdict(readiness)}
    return web.json_response(body, status=200 if readiness.ready else 503)
