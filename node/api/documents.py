"""`/admin/documents`: documents that this peer shares, taken in, listed and withdrawn with the admin key."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from aiohttp import web
from msgspec import Meta, Struct

from nsllm.cache_dht.document_store import DocumentRow
from nsllm.ids import Digest, hex0x
from nsllm.node.api.context import CONTEXT
from nsllm.node.api.openai_errors import bad_request
from nsllm.node.api.requests import decode, read_body
from nsllm.node.service import Piece
from nsllm.record import MAX_CHUNK_CHARS, MAX_SOURCE_CHARS

MAX_PIECES: Final = 64
"""Chunks of one request: embedding them takes about a second of one core."""


class PieceBody(Struct, forbid_unknown_fields=True):
    """One chunk."""

    number: Annotated[int, Meta(ge=0, le=1_000_000)]
    start: Annotated[int, Meta(ge=0, le=2**40)]
    end: Annotated[int, Meta(ge=1, le=2**40)]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_CHUNK_CHARS)]


class DocumentBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /admin/documents`."""

    document: str
    source: Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
    chunks: Annotated[list[PieceBody], Meta(min_length=1, max_length=MAX_PIECES)]


async def list_documents(request: web.Request) -> web.Response:
    """Documents by name."""
    context = request.app[CONTEXT]
    everybodys = request.query.get("all", "") == "1"
    rows = await context.bridge.call(partial(context.service.documents, everybodys=everybodys))
    return web.json_response({"object": "list", "data": [_row(row) for row in rows]})


async def take_in(request: web.Request) -> web.Response:
    """Share chunks of a document; returns once they are on disk."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), DocumentBody)
    pieces: list[Piece] = []
    for index, chunk in enumerate(body.chunks):
        if chunk.start >= chunk.end:
            at = f"chunks[{index}].end"
            raise bad_request(
                f"a chunk of characters {chunk.start} to {chunk.end}: it must end after its start", param=at
            )
        pieces.append(Piece(chunk.number, chunk.start, chunk.end, chunk.text))
    if len({piece.number for piece in pieces}) < len(pieces):
        raise bad_request("two chunks have the same number", param="chunks")
    document = _digest(body.document, "document")
    done = await context.bridge.call(partial(context.service.take_in, document, body.source, pieces))
    return web.json_response({"object": "document", "added": done.added, "known": done.known, "source": done.source})


async def remove(request: web.Request) -> web.Response:
    """Withdraw a document."""
    context = request.app[CONTEXT]
    document = _digest(request.match_info["id"], "id")
    chunks = await context.bridge.call(partial(context.service.remove_document, document))
    return web.json_response({"object": "document", "document": hex0x(document), "removed": chunks})


def _digest(sent: str, param: str) -> Digest:
    try:
        found = bytes.fromhex(sent.removeprefix("0x"))
    except ValueError:
        found = b""
    if len(found) != 32:
        raise bad_request(f"{sent[:80]!r} is no SHA-256: 64 hex digits, with or without 0x", param=param)
    return Digest(found)


def _row(row: DocumentRow) -> dict[str, object]:
    return {
        "document": hex0x(row.document),
        "source": row.source,
        "member": hex0x(row.member),
        "chunks": row.chunks,
        "bytes": row.size_bytes,
        "created_ms": row.created_ms,
    }
