"""`nsllm ingest`: documents are read, cut into chunks, and shared by the running peer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, escape, examples, fail, fetching, json_option, note
from nsllm.errors import NsllmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsllm.cache_dht.chunking import CountTokens
    from nsllm.cli.administering import Admin
    from nsllm.node.config import PeerConfig

BATCH: Final = 32
"""Chunks of one request to the peer: about half a second of embedding."""
TAKE_IN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one file."""

    file: Path
    document: str
    source: str
    chunks: int
    added: int


@click.command(
    short_help="Share documents that answers may cite.",
    epilog=examples(
        "nsllm ingest handbook.md prices.csv",
        "nsllm ingest docs/*.html --json",
        "nsllm ask --retrieve 3 'What does the handbook say about leave?'",
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_dir_option
@click.option("--api", metavar="URL", help="The peer's API.  [default: where the folder's peer serves]")
@json_option
def ingest(*, files: tuple[Path, ...], data_dir: Path | None, api: str | None, as_json: bool) -> int:
    """Share FILES through the running peer: text, Markdown, HTML, CSV, JSON, and PDF (with the extra `documents`).
    Everybody in the network can read them. The same file again adds nothing. A file that cannot be used is named, and
    the others are taken in; the exit status is then 1.
    """  # noqa: D205 - help text
    from nsllm.cli.administering import admin_of

    admin = admin_of(data_dir_or_default(data_dir), api)
    count = _tokenizer(admin)
    taken: list[Taken] = []
    failed: list[tuple[Path, NsllmError]] = []
    for file in dict.fromkeys(files):
        try:
            taken.append(_take_in(file, admin, count))
        except UsageError as error:  # this file's own trouble; a peer that does not answer ends it all
            failed.append((file, error))
            if not as_json:
                fail(error.message, error.hint)
        else:
            if not as_json:
                note(_said(taken[-1]))
    if as_json:
        emit(
            {
                "documents": [_row(one) for one in taken],
                "failed": [
                    {"file": str(file), "code": error.code, "message": error.message, "hint": error.hint}
                    for file, error in failed
                ],
            }
        )
    return 1 if failed else 0


def _take_in(file: Path, admin: Admin, count: CountTokens) -> Taken:
    from nsllm.cache_dht.chunking import chunks
    from nsllm.cli.extracting import extract, read_file
    from nsllm.node.engine.fetch import Progress
    from nsllm.record import MAX_SOURCE_CHARS

    data = read_file(file)
    text = extract(file, data)
    cut = chunks(text, count)
    pieces = [
        {"number": number, "start": one.start, "end": one.end, "text": text[one.start : one.end]}
        for number, one in enumerate(cut)
    ]
    document = hashlib.sha256(data).hexdigest()
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in file.name)
    source = printable[:MAX_SOURCE_CHARS]
    added = 0
    with fetching() as report:
        for at in range(0, len(pieces), BATCH):
            body: dict[str, Any] = {"document": document, "source": source, "chunks": pieces[at : at + BATCH]}
            done = admin.ask("POST", "/admin/documents", body, timeout_s=TAKE_IN_S)
            added += done["added"]
            source = done["source"]
            report(
                Progress(
                    step=f"taking in {printable}", done=min(at + BATCH, len(pieces)), total=len(pieces), unit="chunks"
                )
            )
    return Taken(file, f"0x{document}", source, len(pieces), added)


def _encoder(config: PeerConfig) -> Path:
    from nsllm.node.data_folder import model_paths

    with fetching() as report:
        return model_paths(config, report).encoder


def _tokenizer(admin: Admin) -> CountTokens:
    """Counts tokens as the peer's encoder does."""
    from tokenizers import Tokenizer

    path = _encoder(admin.config) / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"the encoder has no {path}", hint="an encoder with a fast tokenizer is needed")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(found.ids) for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count


def _said(one: Taken) -> str:
    name = escape(one.file.name)
    as_what = "" if one.source == one.file.name else f", known as {escape(one.source)}"
    new = f"{one.chunks} chunks" if one.added == one.chunks else f"{one.added} of {one.chunks} chunks are new"
    return f"[green]✓[/] {name}  [dim]{new}{as_what}  {one.document[:18]}…[/]"


def _row(one: Taken) -> dict[str, object]:
    return {
        "file": str(one.file),
        "document": one.document,
        "source": one.source,
        "chunks": one.chunks,
        "added": one.added,
    }
