"""`nsllm cache export | import`: records of a running peer's store to a file, and from one."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, escape, examples, fail, fetching, json_option, note
from nsllm.errors import UsageError

if TYPE_CHECKING:
    from nsllm.cache_dht.record_file import Damaged, Line
    from nsllm.cli.administering import Admin

PATH: Final = "/admin/cache/records"
BATCH: Final = 64
BATCH_BYTES: Final = 4 * 1024 * 1024
"""Of records in one request; base64 makes a third more of it."""
BRING_S: Final = 300.0
SHOWN: Final = 20
"""Refusals that a person sees; `--json` has them all."""

api_option = click.option("--api", metavar="URL", help="The peer's API.  [default: where the folder's peer serves]")


@click.group(
    short_help="Records of the peer's store: export, import.",
    epilog=examples("nsllm cache export records.jsonl", "nsllm cache import records.jsonl"),
)
def cache() -> None:
    """Certified records, to a file and from one."""


@cache.command("export", epilog=examples("nsllm cache export records.jsonl", "nsllm cache export --force backup.jsonl"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@data_dir_option
@api_option
@json_option
def export_records(*, file: Path, force: bool, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """Write the public records of the running peer's store to FILE: JSON lines, one record each, with their
    certificates. Whoever reads it can check every record; what was revoked is left out.
    """  # noqa: D205 - help text
    from nsllm.cli.administering import admin_of

    if file.exists() and not file.is_file():
        raise UsageError(f"{file} is a device or a pipe", hint="name a file: it is replaced whole once it is written")
    if file.exists() and not force:
        raise UsageError(f"{file} is there already", hint="choose another name, or say --force")
    written = _export(admin_of(data_dir_or_default(data_dir), api), file)
    if as_json:
        emit({"file": str(file), "records": written, "bytes": file.stat().st_size})
    else:
        note(f"[green]✓[/] {escape(str(file))}  [dim]{written} records, {file.stat().st_size / 1e6:.2f} MB[/]")


@cache.command("import", epilog=examples("nsllm cache import records.jsonl", "nsllm cache import records.jsonl --json"))
@click.argument("file", type=click.Path(path_type=Path))
@data_dir_option
@api_option
@json_option
def import_records(*, file: Path, data_dir: Path | None, api: str | None, as_json: bool) -> int:
    """Bring the records of FILE to the running peer, which verifies each and keeps the good ones. What is damaged or
    refused is named; the exit status is then 1. The same file again adds nothing.
    """  # noqa: D205 - help text
    from nsllm.cli.administering import admin_of

    admin = admin_of(data_dir_or_default(data_dir), api)
    try:
        counts, refused = _import(admin, file)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="give a file of `nsllm cache export`") from None
    if as_json:
        emit({"file": str(file), **counts, "refused": refused})
    else:
        for row in refused[:SHOWN]:
            fail(f"line {row['line']}, record {row['record'] or 'unknown'}: {row['reason']}", "")
        more = f", {len(refused) - SHOWN} of them not shown" if len(refused) > SHOWN else ""
        said = f"{counts['stored']} records stored, {counts['known']} known, {len(refused)} refused{more}"
        note(f"{'[red]✗[/]' if refused else '[green]✓[/]'} {escape(str(file))}  [dim]{said}[/]")
    return 1 if refused else 0


def _export(admin: Admin, file: Path) -> int:
    from nsllm.cache_dht.record_file import first_line, last_line, record_line
    from nsllm.ids import Digest, NetworkId
    from nsllm.node.engine.fetch import Progress

    part = file.with_name(f"{file.name}.part")
    written = 0
    page: dict[str, Any] = admin.ask("GET", f"{PATH}?limit={BATCH}")
    try:
        with part.open("wb") as target, fetching() as report:
            target.write(first_line(NetworkId(bytes.fromhex(page["network"][2:]))))
            while True:
                for row in page["data"]:
                    body = base64.b64decode(row["certified"])
                    target.write(record_line(Digest(bytes.fromhex(row["record"][2:])), body))
                written += len(page["data"])
                if page["next"] is None:
                    break
                report(
                    Progress(step="exporting", done=written, total=max(written + 1, page["records"]), unit="records")
                )
                page = admin.ask("GET", f"{PATH}?limit={BATCH}&after={page['next']}")
            target.write(last_line(written))
        part.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}", hint="check the folder and its free space") from None
    finally:
        part.unlink(missing_ok=True)
    return written


def _import(admin: Admin, file: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """What the peer says of all records of a file: how many it stored and knew, and a row a record that it did not."""
    from nsllm.cache_dht.record_file import Line, read_records
    from nsllm.ids import NetworkId
    from nsllm.node.engine.fetch import Progress

    counts, refused = {"stored": 0, "known": 0}, list[dict[str, Any]]()
    network = NetworkId(bytes.fromhex(admin.ask("GET", f"{PATH}?limit=1")["network"][2:]))
    size = file.stat().st_size

    def bring(lines: list[Line]) -> None:
        bodies = [base64.b64encode(line.body).decode() for line in lines]
        told = admin.ask("POST", PATH, {"records": bodies}, timeout_s=BRING_S)["data"] if bodies else []
        for line, row in zip(lines, told, strict=True):
            if row["outcome"] == "refused":
                refused.append(_refused(line, row["reason"]))
            else:
                counts[row["outcome"]] += 1

    with file.open("rb") as source, fetching() as report:
        waiting: list[Line] = []
        for line in read_records(source, network):
            if not isinstance(line, Line):
                refused.append(_refused(line, line.reason))
                continue
            waiting.append(line)
            if len(waiting) == BATCH or sum(len(one.body) for one in waiting) > BATCH_BYTES:
                bring(waiting)
                waiting = []
                report(Progress(step="importing", done=min(source.tell(), size - 1), total=size, unit="bytes"))
        bring(waiting)
    return counts, sorted(refused, key=lambda row: row["line"])


def _refused(line: Line | Damaged, reason: str) -> dict[str, Any]:
    from nsllm.ids import hex0x

    return {"line": line.number, "record": None if line.record is None else hex0x(line.record), "reason": reason}
