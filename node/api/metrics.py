"""`GET /metrics`: the peer's whole registry in Prometheus's text format."""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from nsllm.node.api.context import CONTEXT


async def metrics(request: web.Request) -> web.Response:
    """Text exposition format 0.0.4. Collectors read the peer's state, so they run in the peer's loop."""
    context = request.app[CONTEXT]
    body = await context.bridge.call_sync(lambda: generate_latest(context.metrics.registry))
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
