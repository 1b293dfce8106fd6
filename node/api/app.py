"""The aiohttp application: every endpoint of the table with its handler, behind the guard."""

from __future__ import annotations

from aiohttp import web

from nsllm.node.api import (
    admin,
    cache,
    chat,
    completions,
    documents,
    embeddings,
    governance,
    health,
    metrics,
    model_admin,
    models,
    receipts,
    records,
    status,
    tokens,
)
from nsllm.node.api.context import CONTEXT, Context
from nsllm.node.api.endpoints import ENDPOINTS
from nsllm.node.api.page import Page
from nsllm.node.api.security import Handler, add_headers, guard


def make_app(context: Context) -> web.Application:
    """The application; a table row without a handler, or the other way round, is a `KeyError` at start."""
    handlers = _handlers(Page())
    app = web.Application(middlewares=[guard], client_max_size=context.settings.max_body_bytes)
    app[CONTEXT] = context
    for endpoint in ENDPOINTS:
        app.router.add_route(endpoint.method, endpoint.path, handlers.pop((endpoint.method, endpoint.path)))
    if handlers:
        raise KeyError(f"handlers without a row in the endpoint table: {sorted(handlers)}")
    app.on_response_prepare.append(add_headers)
    return app


def _handlers(page: Page) -> dict[tuple[str, str], Handler]:
    return {
        ("POST", "/v1/chat/completions"): chat.chat_completions,
        ("POST", "/v1/completions"): completions.completions,
        ("POST", "/tokenize"): tokens.tokenize,
        ("POST", "/detokenize"): tokens.detokenize,
        ("POST", "/v1/embeddings"): embeddings.embeddings,
        ("GET", "/v1/models"): models.list_models,
        ("GET", "/v1/models/{id:.+}"): models.get_model,
        ("GET", "/v1/receipts/{id}"): receipts.get_receipt,
        ("GET", "/v1/records/{digest}"): records.standing,
        ("GET", "/status.json"): status.status_json,
        ("GET", "/peers"): status.peers,
        ("GET", "/events"): status.events,
        ("GET", "/metrics"): metrics.metrics,
        ("GET", "/healthz"): health.healthz,
        ("GET", "/readyz"): health.readyz,
        ("GET", "/health"): health.health,
        ("GET", "/ping"): health.health,
        ("GET", "/version"): status.version,
        ("GET", "/load"): status.load,
        ("GET", "/"): page.index,
        ("GET", "/static/{name}"): page.static,
        ("GET", "/session"): admin.get_session,
        ("POST", "/session"): admin.open_session,
        ("POST", "/admin/invite"): admin.invite,
        ("GET", "/admin/governance"): governance.show,
        ("POST", "/admin/governance"): governance.propose,
        ("POST", "/admin/governance/approve"): governance.approve,
        ("GET", "/admin/removals/{digest}"): records.removals,
        ("GET", "/admin/cache/records"): cache.page,
        ("POST", "/admin/cache/records"): cache.bring,
        ("GET", "/admin/documents"): documents.list_documents,
        ("POST", "/admin/documents"): documents.take_in,
        ("DELETE", "/admin/documents/{id}"): documents.remove,
        ("GET", "/admin/models"): model_admin.list_loaded,
        ("POST", "/admin/models"): model_admin.load,
        ("DELETE", "/admin/models/{id}"): model_admin.unload,
    }
