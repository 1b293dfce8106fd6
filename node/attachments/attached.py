"""What comes with a question beside its text: a picture or a table, as it was sent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, Literal

from nsllm.ids import Digest

PLACE: Final = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands in a message's content where something is attached: the n-th one of a conversation for the n-th attachment."""

MAX_ATTACHED: Final = 16
"""In one request."""
MAX_IMAGE_BYTES: Final = 6 << 20
"""One picture as a file: what a telephone takes. The worker's frames take 16 MiB."""
MAX_TABLE_BYTES: Final = 1 << 20
"""One table as a file: some twenty times what a context of 8,192 tokens holds."""
MAX_TOTAL_BYTES: Final = 6 << 20
"""All of one request together; base64 makes a third more of it, and the body's limit leaves room for that."""

Kind = Literal["image", "table"]
Format = Literal["PNG", "JPEG", "WebP", "CSV", "JSON"]
FORMATS: Final[dict[str, tuple[Kind, Format]]] = {
    "image/png": ("image", "PNG"),
    "image/jpeg": ("image", "JPEG"),
    "image/jpg": ("image", "JPEG"),  # not registered, yet often written
    "image/webp": ("image", "WebP"),
    "text/csv": ("table", "CSV"),
    "application/json": ("table", "JSON"),
}
"""Media types that are taken."""


@dataclass(frozen=True, slots=True)
class Attached:
    """One attachment; type and size have been checked, the rest of it has not been looked at."""

    kind: Kind
    format: Format
    data: bytes = field(repr=False)
    """The file."""
    at: str
    """The request field that it came in, such as `messages[0].content[1].image_url`: errors name it."""
    name: str = ""
    """The file's name, if the caller gave one."""
    digest: Digest = field(init=False)
    """SHA-256 of the file, as `sha256sum` prints it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", Digest(hashlib.sha256(self.data).digest()))


def sniff(data: bytes) -> Format | None:
    """Which kind of picture a file is, by its first bytes (PNG 5.2, JPEG B.1.1.3, RFC 9649); None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return None
