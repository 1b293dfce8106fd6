"""`/admin/cache/records`: records out of the store and into it, page by page, with the admin key."""

from __future__ import annotations

import base64
import binascii
from functools import partial
from typing import Annotated, Final

from aiohttp import web
from msgspec import Meta, Struct

from nsllm.consensus.certified import MAX_CERTIFIED_BYTES
from nsllm.ids import Digest, hex0x
from nsllm.node.api.context import CONTEXT
from nsllm.node.api.openai_errors import bad_request
from nsllm.node.api.requests import decode, read_body

MAX_RECORDS: Final = 64
"""Of one page, and of one request that brings some: verifying them takes some 10 ms."""
MAX_BASE64: Final = MAX_CERTIFIED_BYTES * 4 // 3 + 4


class RecordsBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /admin/cache/records`."""

    records: Annotated[list[Annotated[str, Meta(max_length=MAX_BASE64)]], Meta(min_length=1, max_length=MAX_RECORDS)]
    """Certified records in their canonical form, as base64."""


async def page(request: web.Request) -> web.Response:
    """Some records, by ascending digest."""
    context = request.app[CONTEXT]
    after, limit = _after(request.query.get("after", "")), _limit(request.query.get("limit", str(MAX_RECORDS)))
    found = await context.bridge.call(partial(context.service.records, after, limit))
    return web.json_response(
        {
            "object": "list",
            "network": hex0x(found.network),
            "records": found.records,
            "data": [
                {"record": hex0x(record), "certified": base64.b64encode(body).decode()} for record, body in found.rows
            ],
            "next": hex0x(found.last) if found.more and found.last is not None else None,
        }
    )


async def bring(request: web.Request) -> web.Response:
    """Verify and store records; says of each what became of it."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), RecordsBody)
    bodies = [_bytes(text, index) for index, text in enumerate(body.records)]
    done = await context.bridge.call(partial(context.service.bring_records, bodies))
    rows = [
        {"record": None if one.record is None else hex0x(one.record), "outcome": one.outcome, "reason": one.reason}
        for one in done
    ]
    return web.json_response({"object": "list", "data": rows})


def _bytes(text: str, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("a record that is not base64", param=f"records[{index}]") from None


def _after(text: str) -> Digest | None:
    try:
        found = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        found = b"?"
    if found and len(found) != 32:
        raise bad_request(f"{text[:80]!r} is no digest: 0x and 64 hex digits", param="after")
    return Digest(found) if found else None


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_RECORDS):
        raise bad_request(f"'limit' is {text[:20]!r}, 1 to {MAX_RECORDS} are allowed", param="limit")
    return int(text)
