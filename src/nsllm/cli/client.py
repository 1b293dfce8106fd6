"""A peer's HTTP API as the commands use it, on httpx under trio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx

from nsllm.cli.errors import RefusedError, UnreachableApiError
from nsllm.errors import UsageError

ADMIN_HEADER: Final = "X-NSLLM-Admin-Key"
CONNECT_S: Final = 5.0
READ_S: Final = 120.0
LONG_POLL_S: Final = 30.0
"""Below the API's limit of 60 s."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt at the level that it has reached."""

    state: str
    """`pending`, `certified`, `logged`, `anchored` or `none`."""
    detail: str
    text: str
    """Canonical receipt, unchanged; empty before certification."""
    score: float | None
    height: int | None
    signers: tuple[str, ...]
    anchor_tx: str | None
    final: bool = False
    """It comes no further than this."""


class Api:
    """One peer's API. Use as an async context manager."""

    def __init__(self, url: str, key: str = "", *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Talk to the peer at `url` (with or without `/v1`).

        Raises:
            UsageError: not an http(s) address.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"{url!r} is not the address of a peer", hint="such as http://127.0.0.1:8700")
        self.url: Final = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        loopback = parts.hostname in {"127.0.0.1", "localhost", "::1"}
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            transport=transport,
            trust_env=not loopback,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def get(self, path: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            UnreachableApiError, RefusedError.
        """
        with self._named():
            response = await self._http.get(path)
        return self._object(response)

    async def ready(self) -> tuple[bool, str]:
        """Whether `/readyz` answers 200, and what it says."""
        try:
            response = await self._http.get("/readyz", timeout=3.0)
        except httpx.HTTPError as error:
            return False, type(error).__name__
        try:
            detail = str(response.json().get("detail", ""))
        except ValueError:
            detail = ""
        return response.status_code == 200, detail

    async def post_admin(self, path: str, admin_key: str) -> dict[str, Any]:
        """POST with the admin key."""
        return await self.administer("POST", path, admin_key, {})

    async def administer(
        self, method: str, path: str, admin_key: str, body: dict[str, Any] | None = None, *, timeout_s: float = READ_S
    ) -> dict[str, Any]:
        """A JSON object, asked for with the admin key."""
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        headers = {ADMIN_HEADER: admin_key}
        with self._named():
            response = await self._http.request(method, path, headers=headers, json=body, timeout=timeout)
        return self._object(response)

    async def chat_model(self) -> str:
        """Name of the peer's chat model."""
        listed = (await self.get("/v1/models")).get("data", [])
        if not listed:
            raise RefusedError(f"the peer at {self.url} lists no model")
        return str(listed[0]["id"])

    @asynccontextmanager
    async def chat(self, body: dict[str, Any]) -> AsyncIterator[tuple[httpx.Headers, AsyncIterator[dict[str, Any]]]]:
        """Stream a chat completion: response headers, and the chunks as they come."""
        with self._named():
            async with self._http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._object(response)
                yield response.headers, self._chunks(response)

    async def receipt(self, completion_id: str, *, wait: str | None = None, timeout_s: float = 0) -> Receipt:
        """The receipt, after waiting up to `timeout_s` seconds for the level `wait`."""
        params = {} if wait is None else {"wait": wait, "timeout_s": f"{min(timeout_s, LONG_POLL_S):.1f}"}
        with self._named():
            response = await self._http.get(f"/v1/receipts/{completion_id}", params=params)
        headers = response.headers
        detail = ""
        if response.status_code == 404 and headers.get("x-nsllm-receipt") == "none":
            detail = _message(response)
        elif response.status_code == 202:
            detail = str(response.json().get("detail", ""))
        elif response.status_code != 200:
            self._object(response)
        return Receipt(
            state=headers.get("x-nsllm-receipt", "pending" if response.status_code == 202 else "certified"),
            detail=detail,
            text=response.text if response.status_code == 200 else "",
            score=_number(headers.get("x-nsllm-score")),
            height=int(headers["x-nsllm-height"]) if "x-nsllm-height" in headers else None,
            signers=tuple(filter(None, headers.get("x-nsllm-signers", "").split(","))),
            anchor_tx=headers.get("x-nsllm-anchor"),
            final=headers.get("x-nsllm-receipt-final") == "true",
        )

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        with self._named():
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise RefusedError(str(chunk["error"].get("message", "the peer stopped")))
                yield chunk

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code >= 400:
            hint = "give --key, or set NSLLM_API_KEY" if response.status_code == 401 else ""
            raise RefusedError(_message(response), hint=hint, status=response.status_code)
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise RefusedError(f"{self.url} does not speak as a peer does", hint="is another program on that port?")
        return body

    def _named(self) -> _Named:
        return _Named(self.url)


class _Named:
    """Turns transport errors into ours, with the address in them."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise UnreachableApiError(
                f"no peer answers at {self._url}", hint="start one with `nsllm up` or `nsllm devnet`, or give --api URL"
            ) from None
        if isinstance(error, httpx.HTTPError):
            raise UnreachableApiError(
                f"the connection to {self._url} broke off: {type(error).__name__}", hint="see the peer's log"
            ) from None


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url.path}: HTTP {response.status_code}"


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
