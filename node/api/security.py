"""The middleware around every handler: who may ask, from where, with which key; and the shape of every error.

In this order: Host allow-list (against DNS rebinding), foreign Origin and cross-site fetches refused, POST bodies
declared as JSON only (a browser cannot send that across origins without a pre-flight, which nobody answers), then keys.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from nsllm.node.api.context import CONTEXT, Context
from nsllm.node.api.endpoints import ENDPOINTS, Access
from nsllm.node.api.openai_errors import ApiError, error_response, from_exception
from nsllm.node.api.sessions import CSRF_HEADER, Session, cookie_name

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ADMIN_HEADER: Final = "X-NSLLM-Admin-Key"
REQUEST_ID_HEADER: Final = "x-request-id"
REQUEST_ID: Final = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
"""Ids of callers that are sent back as they came."""
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
RESPONSE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "nsllm",
}

_ACCESS: Final[dict[tuple[str, str], Access]] = {(e.method, e.path.replace(":.+", "")): e.access for e in ENDPOINTS}


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Checks, then the handler; whatever is raised becomes an OpenAI-shaped answer, and all of it is counted."""
    context = request.app[CONTEXT]
    route = route_of(request)
    method = request.method if request.method in {"GET", "POST"} else "other"
    began = time.perf_counter()
    status = 499  # nginx's number for a client that left before the answer
    context.metrics.active.inc()
    try:
        try:
            check_origin(request, context)
            authorize(request, context, _ACCESS.get((request.method, route), "open"))
            response = await handler(request)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the supervisor of one request
            response = error_response(from_exception(error, where=f"{method} {route}"))
        status = response.status
        return response
    finally:
        context.metrics.active.dec()
        context.metrics.requests.labels(method, route, str(status)).inc()
        context.metrics.seconds.labels(route).observe(time.perf_counter() - began)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Security headers on every answer, errors and streams included; the request's id, the caller's or a new one."""
    response.headers.update(RESPONSE_HEADERS)
    sent = request.headers.get(REQUEST_ID_HEADER, "")
    response.headers[REQUEST_ID_HEADER] = sent if REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
    response.headers.setdefault("Cache-Control", "no-store")


def route_of(request: web.Request) -> str:
    """The route's pattern, such as `/v1/models/{id}`; never the path itself."""
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical


def check_origin(request: web.Request, context: Context) -> None:
    """Pass silently if the request comes from this peer's own page or from no page at all.

    Raises:
        ApiError: 403 for a foreign Host, Origin or cross-site fetch; 415 for a POST that is not JSON.
    """
    host = request.headers.get("Host", "")
    if not _host_allowed(host, context):
        raise ApiError(
            403,
            f"this peer does not answer for host {host[:128]!r}; its operator can add it to allowed_hosts",
            "host_not_allowed",
            "permission_error",
        )
    origin = request.headers.get("Origin")
    if origin is not None and (urlsplit(origin).netloc.lower() != host.lower() or not origin.startswith("http")):
        raise ApiError(
            403, f"requests from origin {origin[:128]!r} are refused", "origin_not_allowed", "permission_error"
        )
    # Browsers that send fetch metadata tell of cross-site requests without an Origin (images, scripts, forms);
    # following a link to the page is fine.
    site = request.headers.get("Sec-Fetch-Site", "none")
    navigates = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if site not in {"none", "same-origin"} and not navigates:
        raise ApiError(403, f"{site[:32]} requests are refused", "origin_not_allowed", "permission_error")
    if request.method == "POST" and (
        request.content_type != "application/json" or (request.charset or "utf-8").lower() != "utf-8"
    ):
        raise ApiError(
            415,
            f"content type {request.headers.get('Content-Type', 'none')[:64]!r} is refused; send application/json",
            "unsupported_media_type",
        )


def _host_allowed(host: str, context: Context) -> bool:
    settings = context.settings
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
    except ValueError:
        return False
    if name in LOOPBACK_NAMES or name in {allowed.lower() for allowed in settings.allowed_hosts}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    # Rebinding needs a name; an address cannot be rebound. On loopback no other address is ours anyway.
    return not settings.loopback or address == _own_address(settings.host)


def _own_address(host: str) -> object:
    return None if host == "localhost" else ipaddress.ip_address(host)


def authorize(request: web.Request, context: Context, access: Access) -> None:
    """Pass silently if the request carries what `access` asks for.

    Raises:
        ApiError: 401 without the key, 403 for a session's POST without its CSRF token.
    """
    if access == "open":
        return
    session = session_of(request, context)
    if access == "admin":
        if same_key(context.settings.admin_key, request.headers.get(ADMIN_HEADER)):
            return
        if session is not None and session.may_administer:
            _check_csrf(request, session)
            return
        raise ApiError(
            401,
            f"this needs the admin key of the peer's data folder in the header {ADMIN_HEADER}",
            "admin_key_required",
        )
    if may_read(request, context):
        return
    if session is not None and session.may_read:
        _check_csrf(request, session)
        return
    raise ApiError(
        401,
        "this peer asks for its API key as 'Authorization: Bearer KEY'",
        "invalid_api_key",
        headers={"WWW-Authenticate": 'Bearer realm="nsllm"'},
    )


def may_read(request: web.Request, context: Context) -> bool:
    """True if no key is configured (any Authorization header is then ignored), or a right one is in the headers."""
    if context.settings.api_key is None:
        return True
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    bearer = sent.strip() if scheme.lower() == "bearer" else None
    return same_key(context.settings.api_key, bearer) or may_administer(request, context)


def may_administer(request: web.Request, context: Context) -> bool:
    """True if the admin key is in the headers."""
    return same_key(context.settings.admin_key, request.headers.get(ADMIN_HEADER))


def session_of(request: web.Request, context: Context) -> Session | None:
    """The page's session, if the request carries its cookie."""
    return context.sessions.find(request.cookies.get(cookie_name(context.port)))


def _check_csrf(request: web.Request, session: Session) -> None:
    if request.method != "GET" and not session.csrf_matches(request.headers.get(CSRF_HEADER)):
        raise ApiError(
            403, f"the page's request lacks its token in the header {CSRF_HEADER}", "csrf", "permission_error"
        )


def same_key(expected: str | None, sent: str | None) -> bool:
    """True if `sent` is the key; takes as long whichever character differs. Where there is no key, nothing matches."""
    if expected is None or sent is None:
        return False
    return hmac.compare_digest(expected.encode(), sent.encode("utf-8", "surrogateescape"))
