"""`nsllm verify`: a receipt checked offline, from the answer to the chain. Imports no network, model or EVM library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nsllm.cli.terminal import emit, escape, examples, fail, json_option, out

if TYPE_CHECKING:
    from nsllm.governance.receipt import Level
    from nsllm.governance.report import Report


@click.command(
    short_help="Check a receipt offline.",
    epilog=examples(
        "nsllm verify r.json --genesis nsllm-devnet/genesis.json",
        "nsllm verify r.json --genesis genesis.json --require anchored --json",
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
@json_option
@click.pass_context
def verify(ctx: click.Context, *, file: Path, genesis_file: Path, require: Level, as_json: bool) -> None:
    """Check the receipt FILE with nothing but the genesis: exit status 0 if every step holds, 1 if one does not. Says
    of each field whether it is proved (cryptography), attested (a quorum signed it) or claimed (one signer's word).
    """  # noqa: D205 - help text
    from nsllm.errors import NsllmError
    from nsllm.files import read_bounded
    from nsllm.governance.errors import ReceiptError
    from nsllm.governance.genesis import load_genesis
    from nsllm.governance.receipt import MAX_RECEIPT_BYTES
    from nsllm.governance.verify import verify_receipt

    try:
        genesis = load_genesis(genesis_file)
        raw = read_bounded(file, limit_bytes=MAX_RECEIPT_BYTES)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise ReceiptError(f"not UTF-8 at byte {error.start}", step="format", field="document") from None
        report = verify_receipt(text, genesis, require)
    except NsllmError as error:
        step, field = getattr(error, "step", ""), getattr(error, "field", "")
        if as_json:
            emit({"ok": False, "step": step, "field": field, "error": error.message, "hint": error.hint})
        else:
            fail(f"{file} does not hold: {error.message}", error.hint)
        ctx.exit(1)
    if as_json:
        emit(report.to_dict())
    elif out().is_terminal:
        _show(report)
    else:
        click.echo("\n".join(report.lines()))


def _show(report: Report) -> None:
    from rich.table import Table

    colours = {"proved": "green", "attested": "cyan", "claimed": "yellow"}
    out().print(
        f"[bold green]✓ receipt holds[/]: {report.level} at height {report.height}, score "
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
