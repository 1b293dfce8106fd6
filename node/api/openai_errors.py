"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from aiohttp import web

from nsllm.errors import NsllmError, OwnFault, PeerFault, UsageError
from nsllm.node.errors import NodeError, ServiceError

log = logging.getLogger(__name__)


class ApiError(NodeError):
    """An answer that the HTTP side itself gives, without asking the peer.

    Args:
        status: HTTP status.
        message: for the person who reads it.
        code: stable machine-readable name.
        kind: OpenAI's error type.
        param: request field at fault.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.param = param
        self.headers = headers or {}


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_request") -> ApiError:
    """A 400 that names the field at fault."""
    return ApiError(400, message, code, param=param)


def unsupported(param: str, message: str) -> ApiError:
    """A 400 for a field of OpenAI's API that this peer does not serve, rather than ignoring it."""
    return ApiError(400, message, "unsupported_parameter", param=param)


def error_body(error: ApiError) -> dict[str, object]:
    """The JSON object that clients read."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: ApiError) -> web.Response:
    """The whole answer."""
    return web.Response(
        body=msgspec.json.encode(error_body(error)),
        status=error.status,
        headers=dict(error.headers),
        content_type="application/json",
    )


_HTTP_CODES: Mapping[int, tuple[str, str]] = {
    404: ("not_found", "no such endpoint"),
    405: ("method_not_allowed", "this endpoint has no such method"),
    413: ("body_too_large", "the request body is too large"),
}


def from_exception(error: Exception, *, where: str) -> ApiError:  # noqa: PLR0911 - one return a kind
    """What to tell the client about `error`; bugs are logged with their trace and answered without detail.

    Args:
        error: whatever a handler raised.
        where: method and route, for the log.
    """
    match error:
        case ApiError():
            return error
        case web.HTTPException():
            code, message = _HTTP_CODES.get(error.status, ("http_error", error.reason))
            kept = {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}
            kind = "invalid_request_error" if error.status < 500 else "server_error"
            return ApiError(error.status, message, code, kind, headers=kept)
        case ServiceError():
            after = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
            return ApiError(error.status, str(error), error.code, error.kind, error.param, after)
        case UsageError():
            return ApiError(400, str(error), error.code)
        case OwnFault():
            log.warning("api_own_fault where=%s code=%s", where, error.code)
            return ApiError(503, str(error), error.code, "server_error", headers={"Retry-After": "2"})
        case PeerFault():
            return ApiError(502, str(error), error.code, "server_error")
        case NsllmError():
            return ApiError(500, str(error), error.code, "server_error")
        case _:
            log.error("api_bug where=%s error=%s", where, type(error).__name__, exc_info=error)
            return ApiError(500, "internal error; the peer's log has the trace", "internal_error", "server_error")
