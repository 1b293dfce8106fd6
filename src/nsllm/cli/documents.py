"""`nsllm documents list | remove`: the documents that a running peer shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, escape, examples, json_option, note, out
from nsllm.errors import UsageError

api_option = click.option("--api", metavar="URL", help="The peer's API.  [default: where the folder's peer serves]")


@click.group(
    short_help="Documents that the peer shares: list, remove.",
    epilog=examples("nsllm documents list", "nsllm documents list --all --json", "nsllm documents remove handbook.md"),
)
def documents() -> None:
    """What `nsllm ingest` took in."""


@documents.command("list", epilog=examples("nsllm documents list", "nsllm documents list --all"))
@click.option(
    "--all", "everybodys", is_flag=True, help="Others' documents too, as far as this peer holds chunks of them."
)
@data_dir_option
@api_option
@json_option
def list_documents(*, everybodys: bool, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """List documents by name: SHA-256, chunks, bytes here, who shares them."""
    found = _rows(data_dir, api, everybodys=everybodys)
    if as_json:
        emit({"documents": found})
        return
    for row in found:
        who = f"  {row['member'][:12]}…" if everybodys else ""
        line = f"{row['document'][:18]}…  {row['chunks']:>6} chunks  {row['bytes'] / 1e6:>8.2f} MB{who}  "
        out().print(f"{line}{escape(row['source'])}", soft_wrap=True)
    if not found:
        note("no documents; share some with `nsllm ingest FILES`")


@documents.command(epilog=examples("nsllm documents remove handbook.md", "nsllm documents remove 0x1234abcd"))
@click.argument("document")
@data_dir_option
@api_option
@json_option
def remove(*, document: str, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """Withdraw DOCUMENT: its name, or the beginning of its SHA-256. Its holders are told; what answers cited of it
    stays in their records.
    """  # noqa: D205 - help text
    row = _named(_rows(data_dir, api, everybodys=False), document)
    from nsllm.cli.administering import admin_of

    reply = admin_of(data_dir_or_default(data_dir), api).ask("DELETE", f"/admin/documents/{row['document']}")
    if as_json:
        emit({"document": row["document"], "source": row["source"], "removed": reply["removed"]})
    else:
        note(f"[green]✓[/] {escape(row['source'])} is withdrawn  [dim]{reply['removed']} chunks[/]")


def _rows(data_dir: Path | None, api: str | None, *, everybodys: bool) -> list[dict[str, Any]]:
    from nsllm.cli.administering import admin_of

    path = "/admin/documents?all=1" if everybodys else "/admin/documents"
    found: list[dict[str, Any]] = admin_of(data_dir_or_default(data_dir), api).ask("GET", path)["data"]
    return found


def _named(rows: list[dict[str, Any]], document: str) -> dict[str, Any]:
    """The one document of that name or digest."""
    digest = document.lower().removeprefix("0x")
    hexed = len(digest) >= 8 and all(char in "0123456789abcdef" for char in digest)
    found = [row for row in rows if row["source"] == document or (hexed and row["document"][2:].startswith(digest))]
    if not found:
        raise UsageError(f"this peer shares no document {document!r}", hint="`nsllm documents list` names them")
    if len(found) > 1:
        digests = ", ".join(f"{row['document'][:18]}…" for row in found)
        raise UsageError(f"{len(found)} documents are called {document!r}: {digests}", hint="say which by its digest")
    return found[0]
