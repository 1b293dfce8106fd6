"""Files that go along with a question, as content parts of the API."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nsllm.errors import UsageError
from nsllm.node.attachments.attached import MAX_IMAGE_BYTES, MAX_TABLE_BYTES, sniff

MEDIA: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp"}
DATA_MEDIA: Final = {".csv": "text/csv", ".json": "application/json"}


def content_with(text: str, images: Sequence[Path], data: Sequence[Path]) -> str | list[dict[str, Any]]:
    """The content of a message: what is attached first, then the question; just the question if nothing is.

    Raises:
        UsageError: a file that cannot be read or is of no kind that peers take.
    """
    if not images and not data:
        return text
    parts = [{"type": "image_url", "image_url": {"url": _image_url(path)}} for path in images]
    parts += [{"type": "file", "file": {"filename": path.name, "file_data": _data_url(path)}} for path in data]
    return [*parts, {"type": "text", "text": text}]


def _image_url(path: Path) -> str:
    content = _read(path, MAX_IMAGE_BYTES)
    form = sniff(content)
    if form is None:
        raise UsageError(f"{path} is no picture that peers take", hint="PNG, JPEG or WebP")
    return _url(MEDIA[form], content)


def _data_url(path: Path) -> str:
    media = DATA_MEDIA.get(path.suffix.lower())
    if media is None:
        raise UsageError(f"{path} is no data that peers take", hint="a file named .csv or .json")
    return _url(media, _read(path, MAX_TABLE_BYTES))


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > limit_bytes:
        raise UsageError(
            f"{path} is larger than {limit_bytes:,} bytes, the most that peers take", hint="make it smaller"
        )
    return content


def _url(media: str, content: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
