"""`nsllm doctor`: what on this machine would keep a peer from running, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nsllm.cli.options import DEFAULT_API, data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, escape, examples, json_option, out

if TYPE_CHECKING:
    from nsllm.cli.checks import Check


@click.command(
    short_help="Check this machine and say what to do.",
    epilog=examples("nsllm doctor", "nsllm doctor --data-dir nsllm-devnet/peer-0 --json", "nsllm doctor --peers 8"),
)
@data_dir_option
@click.option("--base-port", type=int, default=8700, show_default=True, help="First API port that should be free.")
@click.option("--peers", type=click.IntRange(1, 64), default=4, show_default=True, help="Peers that should fit.")
@click.option("--api", envvar="NSLLM_API", default=DEFAULT_API, show_default=True, metavar="URL",
              help="A running peer to compare clocks with, if there is one.")  # fmt: skip
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, data_dir: Path | None, base_port: int, peers: int, api: str, as_json: bool) -> None:
    """Check Python, compiler headers, torch, memory, disk, ports, models, clock and file modes. Exit status 1 if
    something blocks.
    """  # noqa: D205 - help text
    from nsllm.cli.checks import run_checks
    from nsllm.node.config import models_home

    checks = run_checks(
        data_dir=data_dir_or_default(data_dir), home=models_home(), base_port=base_port, peers=peers, api=api
    )
    blocked = any(check.state == "fail" for check in checks)
    if as_json:
        rows = [{"name": c.name, "state": c.state, "found": c.found, "hint": c.hint} for c in checks]
        emit({"ok": not blocked, "checks": rows})
    else:
        _show(checks)
    ctx.exit(1 if blocked else 0)


def _show(checks: Sequence[Check]) -> None:
    marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
    for check in checks:
        out().print(f"{marks[check.state]} {check.name:<12} {escape(check.found)}", soft_wrap=True)
        if check.hint and check.state != "ok":
            out().print(f"  {'':<12} [cyan]{escape(check.hint)}[/]", soft_wrap=True)
