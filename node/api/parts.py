"""Content parts of a message: text, pictures and tables, as OpenAI's APIs spell them.

Cheap: base64 is decoded, types, sizes and numbers are checked. Nothing looks into a picture or a table here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from nsllm.node.api.openai_errors import ApiError, bad_request, unsupported
from nsllm.node.attachments.attached import (
    FORMATS,
    MAX_ATTACHED,
    MAX_IMAGE_BYTES,
    MAX_TABLE_BYTES,
    MAX_TOTAL_BYTES,
    PLACE,
    Attached,
    sniff,
)

MAX_PARTS: Final = 64
"""In one message."""
MAX_NAME_CHARS: Final = 128
DETAILS: Final = frozenset({"auto", "low", "high", "original"})
"""Values of `detail`: accepted; pictures are always looked at in the same way."""
TAKEN: Final = "PNG, JPEG and WebP pictures, CSV and JSON files"

_DATA_URL = re.compile(r"data:(?P<type>[^;,]{0,100})(?P<rest>[^,]{0,200}),", re.IGNORECASE)


class PartsReader:
    """Reads the contents of one request's messages, in order; keeps what is attached.

    What `read` returns holds a `PLACE` for each attachment. Call `check` once all messages are read.
    """

    def __init__(self) -> None:
        self._attached: list[Attached] = []
        self._bytes = 0

    @property
    def attached(self) -> tuple[Attached, ...]:
        """Everything that was attached, in the order of its places."""
        return tuple(self._attached)

    def read(self, parts: Sequence[Any], at: str, *, text_only: bool = False) -> str:
        """One message's content.

        Args:
            parts: the list of parts as it came out of JSON.
            at: where it stands, such as `messages[1].content`.
            text_only: whether only text may stand here, as in system and assistant messages.

        Returns:
            Its text, one line end between two text parts, with a `PLACE` for each attachment.

        Raises:
            ApiError: 400 that names the part and what is wrong with it.
        """
        if len(parts) > MAX_PARTS:
            raise bad_request(f"{len(parts)} content parts, a message may have {MAX_PARTS}", param=at)
        content = ""
        was_text = False
        for index, part in enumerate(parts):
            where = f"{at}[{index}]"
            if not isinstance(part, dict):
                raise bad_request("a content part must be an object", param=where, code="invalid_type")
            kind = part.get("type")
            if kind in {"text", "input_text", "output_text"}:
                content += ("\n" if was_text else "") + _string(part, "text", where)
                was_text = True
                continue
            if kind not in {"image_url", "input_image", "file", "input_file"}:
                raise unsupported(
                    where, f"content parts of type {str(kind)[:32]!r} are not supported; send text, image_url or file"
                )
            if text_only:
                raise unsupported(where, f"parts of type {kind!r} may stand in user messages only")
            self._keep(_image(part, where) if kind in {"image_url", "input_image"} else _file(part, where))
            content += PLACE
            was_text = False
        return content

    def check(self, contents: Iterable[str]) -> None:
        """Compare the places in all contents of the request with what is attached.

        Raises:
            ApiError: 400, text of the caller holds the character that marks a place.
        """
        if self._attached and sum(content.count(PLACE) for content in contents) != len(self._attached):
            raise bad_request(
                "the text holds the character U+FFFC, which marks the places of attachments; leave it out",
                param="messages",
            )

    def _keep(self, one: Attached) -> None:
        self._bytes += len(one.data)
        if len(self._attached) == MAX_ATTACHED:
            raise bad_request(f"more than {MAX_ATTACHED} attachments in one request", param=one.at)
        if self._bytes > MAX_TOTAL_BYTES:
            raise bad_request(f"the attachments together have more than {MAX_TOTAL_BYTES:,} bytes", param=one.at)
        self._attached.append(one)


def _image(part: dict[str, Any], at: str) -> Attached:
    """`image_url` of chat completions, or `input_image` of the Responses API: the same fields one level up."""
    given = part.get("image_url")
    where = f"{at}.image_url"
    if isinstance(given, dict):
        _known(part, {"type", "image_url"}, at)
        _known(given, {"url", "detail"}, where)
        detail, url = given.get("detail"), _string(given, "url", where)
    else:
        _known(part, {"type", "image_url", "detail"}, at)
        detail, url = part.get("detail"), _string(part, "image_url", at)
    if detail is not None and detail not in DETAILS:
        raise bad_request(f"'detail' is {str(detail)[:32]!r}, use auto, low or high", param=where)
    attached = _decoded(url, where, "")
    if attached.kind != "image":
        raise bad_request(
            f"{attached.format} is no picture; send it as a part of type 'file'", param=where, code="unsupported_type"
        )
    return attached


def _file(part: dict[str, Any], at: str) -> Attached:
    """`file` of chat completions, or `input_file` of the Responses API: the same fields one level up."""
    given = part.get("file")
    where = at
    if part["type"] == "file":
        _known(part, {"type", "file"}, at)
        where = f"{at}.file"
        if not isinstance(given, dict):
            raise bad_request("a file part needs an object 'file'", param=where, code="invalid_type")
        inner = given
    else:
        inner = {name: value for name, value in part.items() if name != "type"}
    if inner.get("file_id") is not None or inner.get("file_url") is not None:
        raise unsupported(where, "this peer stores and fetches no files; send 'file_data', a data URL")
    _known(inner, {"filename", "file_data", "file_id", "file_url"}, where)
    name = "" if inner.get("filename") is None else _string(inner, "filename", where)
    name = " ".join(name.replace(PLACE, "").split())
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise bad_request(f"'filename' may have {MAX_NAME_CHARS} printable characters", param=f"{where}.filename")
    return _decoded(_string(inner, "file_data", where), f"{where}.file_data", name)


def _decoded(url: str, at: str, name: str) -> Attached:
    """What a data URL (RFC 2397) holds, its type checked against its first bytes."""
    if re.match(r"https?:", url, re.IGNORECASE):
        raise unsupported(at, "this peer fetches nothing for its callers; send the file itself as a data URL")
    head = _DATA_URL.match(url)
    if head is None:
        raise bad_request("not a data URL: it must begin with data:TYPE;base64,", param=at, code="invalid_data_url")
    media = head["type"].strip().lower()
    if media not in FORMATS:
        raise bad_request(
            f"{media[:64] or 'no media type'!r} is not taken: send {TAKEN}", param=at, code="unsupported_type"
        )
    if not head["rest"].lower().endswith(";base64"):
        raise bad_request("the data URL is not base64", param=at, code="invalid_data_url")
    kind, form = FORMATS[media]
    limit = MAX_IMAGE_BYTES if kind == "image" else MAX_TABLE_BYTES
    if (len(url) - head.end()) // 4 * 3 > limit + 3:
        _too_large(form, limit, at)
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("the data URL's base64 is broken", param=at, code="invalid_base64") from None
    if len(data) > limit:
        _too_large(form, limit, at)
    if not data:
        raise bad_request("the data URL is empty", param=at, code="invalid_data_url")
    found = sniff(data)
    if (kind == "image" and found != form) or (kind == "table" and found is not None):
        said = found or "no PNG, JPEG or WebP picture"
        raise bad_request(f"declared as {media}, but the file is {said}", param=at, code="wrong_type")
    return Attached(kind, form, data, at, name)


def _too_large(form: str, limit: int, at: str) -> NoReturn:
    raise ApiError(400, f"the {form} file is larger than {limit:,} bytes", "attachment_too_large", param=at)


def _string(holder: dict[str, Any], name: str, at: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        raise bad_request(f"a string {name!r} is needed here", param=f"{at}.{name}", code="invalid_type")
    return value


def _known(holder: dict[str, Any], names: set[str], at: str) -> None:
    unknown = sorted(set(holder) - names)
    if unknown:
        raise bad_request(f"unknown field {unknown[0][:64]!r}", param=f"{at}.{unknown[0][:64]}", code="unknown_field")
