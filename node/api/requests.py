"""Request bodies as they come: bounded in size, time and depth, then decoded into typed structs.

A body that is not what an endpoint takes is refused with a 400 that names the field at fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Final, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from nsllm.node.api.context import CONTEXT
from nsllm.node.api.openai_errors import ApiError, bad_request

MAX_DEPTH: Final = 64
"""Of nested lists and objects in a body; a JSON schema of a tool may have some twenty levels."""

T = TypeVar("T")


class EmptyBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /session` and `POST /admin/invite`: an empty object."""


_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]}]', re.DOTALL)
"""A whole string, or one bracket outside of strings; linear in time, also for a string that does not end."""
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")


async def read_body(request: web.Request) -> bytes:
    """The whole body of a POST, bounded in size and time.

    Raises:
        ApiError: 408, 413, or 415 for a compressed body.
    """
    settings = request.app[CONTEXT].settings
    limit = settings.max_body_bytes
    too_large = ApiError(413, f"the body is larger than {limit} bytes", "body_too_large")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not accepted", "unsupported_media_type")
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {settings.body_timeout_s:g} s", "body_timeout") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None


def decode(data: bytes, kind: type[T]) -> T:
    """The body as `kind`.

    Raises:
        ApiError: 400 that says what is wrong and names the field.
    """
    _check_depth(data)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = str(error) if isinstance(error, msgspec.DecodeError) else "it is not UTF-8"
        raise bad_request(f"the body is not valid JSON: {said}", code="invalid_json") from None


def _check_depth(data: bytes) -> None:
    """Depth is bounded before anything is parsed: parsers recurse, and the C stack has an end."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKET.finditer(data):
        sign = found[0]
        depth += (sign in {b"[", b"{"}) - (sign in {b"]", b"}"})
        if depth > MAX_DEPTH:
            raise bad_request(f"the JSON body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _invalid(said: str) -> ApiError:
    at = _PATH.search(said)
    path = at["path"].replace("[...]", "") if at else ""
    text = said[: at.start()] if at else said
    named = _FIELD.search(text)
    if named is not None:
        param = f"{path}.{named['name']}" if path else named["name"]
        missing = "required" in text
        message = f"missing field {param!r}" if missing else f"unknown field {param!r}"
        return bad_request(message, param=param, code="missing_field" if missing else "unknown_field")
    where = f" in {path!r}" if path else ""
    return bad_request(f"{text[:1].lower()}{text[1:]}{where}", param=path or None, code="invalid_type")


def client_of(request: web.Request) -> str:
    """Who asks, for turns between those who wait: the address, told apart by the bearer key that it sends, if any."""
    address = request.remote or ""
    bearer = request.headers.get("Authorization")
    return address if bearer is None else f"{address} {hashlib.sha256(bearer.encode()).hexdigest()[:12]}"
