"""`nsllm sim mutants`: rules of the agreement are broken one by one, and each must be found out."""

from __future__ import annotations

import time

import click

from nsllm.cli.terminal import emit, examples, json_option


@click.command(
    short_help="Break the agreement's rules; each must be noticed.",
    epilog=examples("nsllm sim mutants --json", "nsllm sim mutants --only 'unlock on nil'"),
)
@click.option("--only", metavar="TEXT", default="", help="Mutants whose name contains this.")
@json_option
@click.pass_context
def mutants(ctx: click.Context, *, only: str, as_json: bool) -> None:
    """Import the shipped code with one rule broken, and play the scenarios that should notice: guided schedules of
    faults, or one adversary that aims at this rule. The unbroken code must survive the same scenarios. Exits 1 if a
    mutant survives.
    """  # noqa: D205 - help text
    from nsllm.simulations.mutants.catalogue import MUTANTS
    from nsllm.simulations.mutants.hunt import control, hunt

    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    if not chosen:
        raise click.BadParameter(f"no mutant is called {only!r}", param_hint="--only")
    began = time.monotonic()
    control(chosen)
    rows = []
    for hunted in hunt(chosen):
        mutant = hunted.mutant
        rows.append(
            {
                "name": mutant.name,
                "module": mutant.module,
                "killed": hunted.killed,
                "by": hunted.found,
                "seconds": round(hunted.seconds, 2),
            }
        )
        if not as_json:
            click.echo(f"{'killed' if hunted.killed else 'ALIVE':>6}  {hunted.seconds:5.2f} s  {mutant.name}")
            for scenario, found in hunted.found.items():
                click.echo(f"{'':17}{scenario}: {found or 'holds'}")
    killed = sum(bool(row["killed"]) for row in rows)
    seconds = round(time.monotonic() - began, 2)
    if as_json:
        emit({"mutants": len(rows), "killed": killed, "seconds": seconds, "control": "holds", "rows": rows})
    else:
        click.echo(f"{killed} of {len(rows)} mutants killed in {seconds:.0f} s; the sound code survives the same")
    ctx.exit(0 if killed == len(rows) else 1)
