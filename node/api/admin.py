"""Sessions of the page and what needs the admin key: `GET`/`POST /session`, `POST /admin/invite`."""

from __future__ import annotations

from aiohttp import web

from nsllm.node.api.context import CONTEXT
from nsllm.node.api.openai_errors import ApiError
from nsllm.node.api.requests import EmptyBody, decode, read_body
from nsllm.node.api.security import may_administer, may_read, session_of
from nsllm.node.api.sessions import Session, cookie_name


async def get_session(request: web.Request) -> web.Response:
    """What the page may do now; tells it whether to ask for a key."""
    context = request.app[CONTEXT]
    session = session_of(request, context)
    reads = may_read(request, context) or (session is not None and session.may_read)
    return web.json_response(_about(session, reads=reads))


async def open_session(request: web.Request) -> web.Response:
    """Turns a key in the headers into a strict same-site cookie and a CSRF token."""
    context = request.app[CONTEXT]
    decode(await read_body(request), EmptyBody)
    administers = may_administer(request, context)
    reads = may_read(request, context)
    if not administers and (context.settings.api_key is None or not reads):
        raise ApiError(401, "no valid key in the request", "invalid_api_key")
    cookie, session = context.sessions.open(may_read=reads, may_administer=administers)
    response = web.json_response(_about(session, reads=reads))
    response.set_cookie(
        cookie_name(context.port), cookie, httponly=True, samesite="Strict", path="/", secure=request.secure
    )
    return response


async def invite(request: web.Request) -> web.Response:
    """A one-time invite text, to be given to whoever shall join."""
    context = request.app[CONTEXT]
    decode(await read_body(request), EmptyBody)
    return web.json_response({"object": "invite", "invite": await context.bridge.call(context.service.invite)})


def _about(session: Session | None, *, reads: bool) -> dict[str, object]:
    return {
        "may_read": reads,
        "may_administer": session is not None and session.may_administer,
        "csrf": None if session is None else session.csrf,
    }
