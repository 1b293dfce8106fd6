"""The status page's files, read once at start: nothing is fetched from anywhere else, and no path reaches the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from aiohttp import web

from nsllm.node.api.openai_errors import ApiError

CONTENT_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One static file."""

    body: bytes
    content_type: str
    etag: str


class Page:
    """Handlers of `/` and `/static/{name}`."""

    def __init__(self) -> None:
        folder = resources.files("nsllm.node.api") / "static"
        self._assets = {item.name: _asset(item.name, item.read_bytes()) for item in folder.iterdir()}

    async def index(self, request: web.Request) -> web.Response:
        """The page."""
        return _answer(request, self._assets["index.html"])

    async def static(self, request: web.Request) -> web.Response:
        """One of its files, by exact name."""
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise ApiError(404, "no such file", "not_found")
        return _answer(request, asset)


def _asset(name: str, body: bytes) -> Asset:
    suffix = name[name.rfind(".") :]
    kind = CONTENT_TYPES.get(suffix, "application/octet-stream")
    return Asset(body=body, content_type=kind, etag=hashlib.sha256(body).hexdigest()[:16])


def _answer(request: web.Request, asset: Asset) -> web.Response:
    # Always asked again, never stale after an upgrade; unchanged files cost a 304.
    headers = {"Cache-Control": "no-cache", "ETag": f'"{asset.etag}"'}
    if any(tag.value == asset.etag for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers)
