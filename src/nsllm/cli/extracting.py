"""Text out of files: plain text, Markdown, HTML, CSV, JSON and PDF. Every refusal names the file and what to do."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

from nsllm.cli.errors import FileError

MAX_FILE_BYTES: Final = 64 << 20
MAX_CHARS: Final = 20_000_000
"""Of the text of one file: some 15,000 chunks."""
MAX_PAGES: Final = 5_000
CONTROLS_PART: Final = 0.01
"""A text with more control characters than this is none."""
BLOCKS: Final = re.compile(
    r"address|article|aside|blockquote|br|d[dlt]|div|fieldset|figcaption|figure|footer|form|h[1-6r]|header|li|main|nav"
    r"|[ou]l|p|pre|section|table|t[dhr]|title"
)
"""Elements that begin and end a paragraph."""
MAX_UNCLOSED: Final = 1_000
_UNCLOSED: Final = re.compile(r"<(?=[^<>]*(?:<|$))")
"""A tag that does not end before the next one begins."""
HIDDEN: Final = frozenset(("script", "style", "template", "noscript", "svg"))


def read_file(path: Path) -> bytes:
    """All of a file.

    Raises:
        FileError: it cannot be read, is no file, is empty, or too large.
    """
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder", hint=f"name its files: {path}/*")
        if not path.is_file() and path.exists():
            raise FileError(f"{path} is no plain file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise FileError(f"{path} has {size:,} bytes, the limit is {MAX_FILE_BYTES:,}", hint="split it")
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    if not data:
        raise FileError(f"{path} is empty")
    return data


def extract(path: Path, data: bytes) -> str:
    """The text of a file, by what its name ends with; any other name counts as plain text.

    Raises:
        FileError: it is not what its name says, or holds no text; says what to do.
    """
    suffix = path.suffix.lower()
    if suffix == ".pdf" or data.startswith(b"%PDF-"):
        text = _pdf(path, data)
    else:
        text = _decoded(path, data)
        if suffix in {".html", ".htm", ".xhtml"}:
            text = _html(text)
        elif suffix in {".csv", ".tsv"}:
            text = _table(path, text, "\t" if suffix == ".tsv" else None)
        elif suffix == ".json":
            text = _json(path, text)
    # Lone surrogates come out of JSON's escapes and of damaged fonts; no encoding has them.
    text = text.encode("utf-8", "replace").decode("utf-8").strip()
    _check_printable(path, text)
    if not text:
        raise FileError(f"{path} holds no text", hint="a scanned page has to go through OCR first")
    if len(text) > MAX_CHARS:
        raise FileError(f"{path} holds {len(text):,} characters, the limit is {MAX_CHARS:,}", hint="split it")
    return text


def _decoded(path: Path, data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark; line ends become `\\n`."""
    encoding = "utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        named = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise FileError(
            f"{path} is not text in {named} (byte {error.start})",
            hint=f"if it is text: iconv -f WINDOWS-1252 -t UTF-8 {path.name}; other formats cannot be read",
        ) from None
    _check_printable(path, text)
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")


def _check_printable(path: Path, text: str) -> None:
    controls = sum(char < " " and char not in "\n\r\t\f" for char in text)
    if "\0" in text or controls > CONTROLS_PART * len(text):
        raise FileError(f"{path} is not text: it holds {controls:,} control characters")


class _Words(HTMLParser):
    """What a browser would show, with an empty line around blocks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - the signature
        """A block begins, or something that is not shown."""
        if tag in HIDDEN:
            self._hidden.append(tag)
        if BLOCKS.fullmatch(tag):
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        """It ends."""
        if self._hidden and self._hidden[-1] == tag:
            self._hidden.pop()
        if BLOCKS.fullmatch(tag):
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        """Text: white space within it is one space."""
        if not self._hidden:
            words = " ".join(data.split())
            before = " " if data[:1].isspace() else ""
            after = " " if data[-1:].isspace() and words else ""
            self.parts.append(f"{before}{words}{after}")


def _html(text: str) -> str:
    if sum(1 for _ in _UNCLOSED.finditer(text)) > MAX_UNCLOSED:  # the parser reads on to the end after each of them
        text = _UNCLOSED.sub("&lt;", text)
    parser = _Words()
    parser.feed(text)
    parser.close()
    paragraphs = (" ".join(part.split()) for part in "".join(parser.parts).split("\n\n"))
    return "\n\n".join(filter(None, paragraphs))


def _table(path: Path, text: str, delimiter: str | None) -> str:
    """A line a row, each cell behind its column's name, so that a row says by itself what it is about."""
    lines = text.splitlines()
    delimiter = delimiter or max(",;\t|", key=lambda sign: lines[0].count(sign) if lines else 0)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if any(row)]
    except csv.Error as error:
        raise FileError(f"{path} is no CSV: {error}") from None
    if len(rows) < 2:
        return text
    names = rows[0]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise FileError(f"row {number} of {path} has {len(row)} fields, the first one {len(names)}")
    return "\n".join(
        "; ".join(f"{name.strip()}: {cell.strip()}" for name, cell in zip(names, row, strict=True) if cell.strip())
        for row in rows[1:]
    )


def _json(path: Path, text: str) -> str:
    """A line a value, behind its path; a list's members are paragraphs."""
    try:
        value = json.loads(text)
        if isinstance(value, list):
            return "\n\n".join("\n".join(_leaves(each, "")) for each in value)
        return "\n".join(_leaves(value, ""))
    except RecursionError:
        raise FileError(f"{path} is nested too deep") from None
    except ValueError as error:
        raise FileError(f"{path} is no JSON: {error}") from None


def _leaves(value: object, at: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{at}.{name}" if at else str(name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{at}[{number}]")
    elif value not in (None, ""):
        shown = value if isinstance(value, str) else json.dumps(value)
        yield f"{at}: {shown}" if at else shown


def _pdf(path: Path, data: bytes) -> str:
    """Text of a PDF's pages, a paragraph each at least; needs pypdf, the extra `documents`."""
    try:
        import pypdf
    except ImportError:
        raise FileError(
            f"{path} is a PDF, and pypdf, which reads them, is not installed", hint="pip install 'nsllm[documents]'"
        ) from None
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise FileError(f"{path} is encrypted", hint="store it without a password")
        if len(reader.pages) > MAX_PAGES:
            raise FileError(f"{path} has {len(reader.pages):,} pages, the limit is {MAX_PAGES:,}", hint="split it")
        pages = [page.extract_text() for page in reader.pages]
    except FileError:
        raise
    except Exception as error:  # noqa: BLE001 - pypdf raises whatever a damaged file makes it run into
        raise FileError(f"{path} is a damaged PDF: {type(error).__name__}") from None
    return "\n\n".join(pages)
