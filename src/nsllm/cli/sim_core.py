"""`nsllm sim core` and `nsllm sim replay`: the agreement alone under attack, and one schedule of it."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
from rich.progress import Progress

from nsllm.cli.terminal import emit, examples, json_option

if TYPE_CHECKING:
    from nsllm.simulations.core.plan import Plan

_peers_option = click.option(
    "--peers", type=click.IntRange(2, 32), default=4, show_default=True, help="Validators in a schedule."
)
_byzantine_option = click.option(
    "--byzantine", type=click.IntRange(0), help="How many are Byzantine.  [default: as the seed says, at most f]"
)


@click.command(
    short_help="Agreement under attack, schedule by schedule.",
    epilog=examples(
        "nsllm sim core --peers 4 --schedules 1000 --seed 1 --json",
        "nsllm sim core --peers 7 --schedules 1000 --jobs 2",
        "nsllm sim core --peers 4 --byzantine 2 --schedules 100",
    ),
)
@_peers_option
@click.option("--schedules", type=click.IntRange(1), default=1000, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first; the next ones follow.")
@_byzantine_option
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that share the work.")
@json_option
@click.pass_context
def core(
    ctx: click.Context, *, peers: int, schedules: int, seed: int, byzantine: int | None, jobs: int, as_json: bool
) -> None:
    """Play schedules in which validators crash, lie and conspire while links lose, hold back and aim. Checked after
    every event: agreement, certificates, no honest double signature, no honest validator accused; and a decision
    once the network heals. With more than f Byzantine validators agreement may break; then f+1 of them must be named
    by what honest validators have in their logs. Exits 1 if anything did not hold.
    """  # noqa: D205 - help text
    from nsllm.simulations.core.schedules import Series, run_schedules

    with Progress(transient=True, disable=as_json) as progress:
        task = progress.add_task("schedules", total=schedules)
        summary = run_schedules(
            Series(peers, seed, schedules, byzantine),
            jobs=jobs,
            progress=lambda done: progress.update(task, completed=done),
        )
    replays = {found.seed: _replay_command(peers, found.seed, byzantine) for found in summary.violations}
    if as_json:
        emit(
            {
                "peers": peers,
                "seed": seed,
                "schedules": summary.schedules,
                "violations": len(summary.violations),
                "violated": [
                    {"seed": found.seed, "what": found.what, "replay": replays[found.seed]}
                    for found in summary.violations
                ],
                "agreement_broken": summary.broken,
                "events_per_schedule": round(summary.events / summary.schedules, 1),
                "seconds": round(summary.seconds, 2),
                "cpu_seconds": round(summary.cpu_seconds, 2),
                "per_minute": round(summary.per_minute),
                "jobs": jobs,
                "digest": summary.digest,
            }
        )
    else:
        on = f"{jobs} processes" if jobs > 1 else "one process"
        click.echo(
            f"{schedules} schedules, {summary.events} events, {summary.per_minute:,.0f} schedules a minute on {on}"
        )
        click.echo(f"digest {summary.digest}")
        if summary.broken:
            click.echo(f"agreement broke in {summary.broken}, as it may; in each, f+1 of the guilty are named")
        for found in summary.violations:
            click.echo(f"seed {found.seed}: {found.what}")
            click.echo(f"  {replays[found.seed]}")
        if not summary.violations:
            click.echo("everything held")
    ctx.exit(1 if summary.violations else 0)


@click.command(
    short_help="One schedule of `core`, event by event.",
    epilog=examples(
        "nsllm sim replay --peers 4 --seed 7",
        "nsllm sim replay --plan smaller.json",
    ),
)
@_peers_option
@click.option("--seed", type=int, help="As `nsllm sim core` named it.")
@_byzantine_option
@click.option(
    "--plan", "plan_text", metavar="PLAN", help="Instead of a seed: a plan as JSON, or a file that holds one."
)
@click.option("--shrink", is_flag=True, help="Make a failing schedule smaller first, and say how to replay that one.")
@json_option
@click.pass_context
def replay(
    ctx: click.Context,
    *,
    peers: int,
    seed: int | None,
    byzantine: int | None,
    plan_text: str | None,
    shrink: bool,
    as_json: bool,
) -> None:
    """Print a schedule's faults, every event with its virtual time and validator, and what did not hold."""
    from nsllm.simulations.core.draw import draw
    from nsllm.simulations.core.plan import plan_from_json, plan_to_json
    from nsllm.simulations.core.schedules import played
    from nsllm.simulations.core.shrink import shrink as shrunk

    if (seed is None) == (plan_text is None):
        raise click.UsageError("Give --seed or --plan.")
    plan: Plan = draw(seed, peers, byzantine) if seed is not None else plan_from_json(_text_of(plan_text or ""))
    if shrink and played(plan)[1]:
        plan, _ = shrunk(plan, lambda smaller: played(smaller)[1])
    trace: list[str] = []
    _, violation = played(plan, trace=trace)
    said = plan_to_json(plan)
    if as_json:
        emit({"faults": plan.faults(), "plan": json.loads(said), "events": trace, "violation": violation})
    else:
        for fault in plan.faults():
            click.echo(f"# {fault}")
        click.echo("# seconds  validator  event")
        for line in trace:
            click.echo(line)
        click.echo(f"# {violation or 'everything held'}")
        if shrink and violation:
            click.echo(f"# nsllm sim replay --plan {quote(said)}")
    ctx.exit(1 if violation else 0)


def _replay_command(peers: int, seed: int, byzantine: int | None) -> str:
    more = "" if byzantine is None else f" --byzantine {byzantine}"
    return f"nsllm sim replay --peers {peers} --seed {seed}{more}"


def _text_of(plan: str) -> str:
    """The plan itself, or what the file of that name holds."""
    if plan.lstrip().startswith("{"):
        return plan
    try:
        return Path(plan).read_text(encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"{plan}: {error.strerror}", param_hint="--plan") from None
