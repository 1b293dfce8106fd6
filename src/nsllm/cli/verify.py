"""`nsllm verify`: a receipt checked offline, from the answer to the chain. Imports no network, model or EVM library.

With `--api` it also asks a peer whether the record was revoked since; that alone needs the network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from nsllm.cli.terminal import emit, escape, examples, fail, json_option, out

if TYPE_CHECKING:
    from nsllm.cli.standing import Standing
    from nsllm.governance.genesis import Genesis
    from nsllm.governance.receipt import Level
    from nsllm.governance.report import Report

REFUSED: Final = 1
REVOKED: Final = 3
UNKNOWN: Final = 4
"""Exit status: a step does not hold; all hold, but the record was revoked; the peer could not be asked."""


@click.command(
    short_help="Check a receipt offline.",
    epilog=examples(
        "nsllm verify r.json --genesis nsllm-devnet/genesis.json",
        "nsllm verify r.json --genesis genesis.json --require anchored --json",
        "nsllm verify r.json --genesis genesis.json --api http://127.0.0.1:8700   # revoked since?",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--genesis", "genesis_file", type=click.Path(path_type=Path), required=True, metavar="FILE",
              help="The network's genesis, from a source that you trust.")  # fmt: skip
@click.option(
    "--require",
    type=click.Choice(["certified", "logged", "anchored"]),
    default="certified",
    show_default=True,
    help="Least level that is good enough.",
)
@click.option("--api", metavar="URL", help="Ask this peer, too, whether the record was revoked since.")
@click.option("--key", default="", envvar="NSLLM_API_KEY", help="Its API key, where it wants one.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context, *, file: Path, genesis_file: Path, require: Level, api: str | None, key: str, as_json: bool
) -> None:
    """Check the receipt FILE with nothing but the genesis: exit status 0 if every step holds, 1 if one does not, 3 if
    all hold but validators revoked the record. Says of each field whether it is proved (cryptography), attested (a
    quorum signed it) or claimed (one signer's word). A receipt written before a revocation cannot know of it: --api
    asks a peer, whose word that it was revoked is proved, and that it was not is only its word. Exit status 4 if the
    peer cannot be asked.
    """  # noqa: D205 - help text
    from nsllm.errors import NsllmError

    try:
        report, genesis = _read(file, genesis_file, require)
    except NsllmError as error:
        step, field = getattr(error, "step", ""), getattr(error, "field", "")
        if as_json:
            emit({"ok": False, "step": step, "field": field, "error": error.message, "hint": error.hint})
        else:
            fail(f"{file} does not hold: {error.message}", error.hint)
        ctx.exit(REFUSED)
    asked: Standing | None = None
    if api is not None:
        from nsllm.cli.standing import ask_standing

        try:
            asked = ask_standing(api, key, report.record, genesis)
        except NsllmError as error:
            message = f"the receipt holds; whether it was revoked since is not known: {error.message}"
            if as_json:
                emit({**report.to_dict(), "asked": {"error": error.message, "hint": error.hint}})
            else:
                fail(message, error.hint)
            ctx.exit(UNKNOWN)
        if asked.revoked_height is not None:
            report = replace(report, revoked_height=asked.revoked_height)
    _tell(report, asked, as_json=as_json)
    if report.revoked_height is not None:
        ctx.exit(REVOKED)


def _read(file: Path, genesis_file: Path, require: Level) -> tuple[Report, Genesis]:
    from nsllm.files import read_bounded
    from nsllm.governance.errors import ReceiptError
    from nsllm.governance.genesis import load_genesis
    from nsllm.governance.receipt import MAX_RECEIPT_BYTES
    from nsllm.governance.verify import verify_receipt

    genesis = load_genesis(genesis_file)
    raw = read_bounded(file, limit_bytes=MAX_RECEIPT_BYTES)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ReceiptError(f"not UTF-8 at byte {error.start}", step="format", field="document") from None
    return verify_receipt(text, genesis, require), genesis


def _tell(report: Report, asked: Standing | None, *, as_json: bool) -> None:
    if as_json:
        emit({**report.to_dict(), **({"asked": {"height": asked.height}} if asked is not None else {})})
        return
    if out().is_terminal:
        _show(report)
    else:
        click.echo("\n".join(report.lines()))
    if asked is not None:
        click.echo(f"  {asked.line()}")


def _show(report: Report) -> None:
    from rich.table import Table

    colours = {"proved": "green", "attested": "cyan", "claimed": "yellow"}
    head = "[bold green]✓ receipt holds[/]"
    if report.revoked_height is not None:
        head = f"[bold red]✗ revoked at height {report.revoked_height}[/]; the receipt holds"
    out().print(
        f"{head}: {report.level} at height {report.height}, score "
        f"{report.score_ppm / 1_000_000:.3f}, signed by {report.signers} of {report.validators} validators"
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for width in (8, None, None):
        table.add_column(no_wrap=True, min_width=width)
    for finding in report.findings:
        colour = colours[finding.standing]
        table.add_row(
            f"[{colour}]{finding.standing}[/]", finding.field, escape(finding.value), f"[dim]{escape(finding.why)}[/]"
        )
    out().print(table)
    out().print(f"[dim]steps: {', '.join(report.steps)}[/]")
    for line in report.notes:
        out().print(f"[dim]note: {escape(line)}[/]")
