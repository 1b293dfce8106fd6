"""Content (prompts, answers, keys) shows itself as length and digest wherever a program might print it."""

from __future__ import annotations

import hashlib


def redact(content: str | bytes) -> str:
    """Length and first digest bytes of content, for errors and logs.

    >>> redact("hello")
    '<5 chars sha256:2cf24dba>'
    >>> redact(b"")
    '<0 bytes sha256:e3b0c442>'
    """
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    unit = "chars" if isinstance(content, str) else "bytes"
    return f"<{len(content)} {unit} sha256:{hashlib.sha256(raw).hexdigest()[:8]}>"


class Text(str):
    """Text that a person or a model wrote; `repr` (so every traceback and log line) shows length and digest only."""

    __slots__ = ()

    def __repr__(self) -> str:
        return redact(str(self))
