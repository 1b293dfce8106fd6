"""`nsllm sim`: a whole network on a virtual clock, or the agreement alone under attack."""

from __future__ import annotations

import click
from rich.progress import Progress

from nsllm.cli.terminal import emit, examples, json_option


class Scenarios(click.Group):
    """The commands of this file, and every scenario by its name."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, or one that runs the scenario of that name."""
        return super().get_command(ctx, cmd_name) or _scenario(cmd_name)


@click.group(
    cls=Scenarios,
    short_help="Run a simulated network from a seed.",
    epilog=examples(
        "nsllm sim list",
        "nsllm sim steady --peers 8 --seed 1 --json",
        "nsllm sim core --schedules 1000 --seed 1",
        "nsllm sim replay --seed 7",
    ),
)
def sim() -> None:
    """Run a scenario (`nsllm sim list` names them) with the peers' own code on an in-memory network and a virtual
    clock; print what happened and its digest. The model is a stand-in that says so. `core` runs the agreement alone,
    in many short schedules full of faults.
    """  # noqa: D205 - help text


@sim.command("list", short_help="Scenarios by name.", epilog=examples("nsllm sim list --json"))
@json_option
def list_scenarios(*, as_json: bool) -> None:
    """What there is to run."""
    from nsllm.simulations.scenarios import SCENARIOS

    said = {name: (scenario.play.__doc__ or "").strip().partition("\n")[0] for name, scenario in SCENARIOS.items()}
    said["core"] = "Agreement alone: seeded schedules of faults, Byzantine validators and links that aim."
    if as_json:
        emit(said)
        return
    for name, about in said.items():
        click.echo(f"{name:>10}  {about}")


@sim.command(
    short_help="Agreement under attack, schedule by schedule.",
    epilog=examples("nsllm sim core --peers 4 --schedules 1000 --seed 1 --json"),
)
@click.option("--peers", type=click.IntRange(2, 32), default=4, show_default=True, help="Validators in a schedule.")
@click.option("--schedules", type=click.IntRange(1), default=1000, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first; the next ones follow.")
@json_option
@click.pass_context
def core(ctx: click.Context, *, peers: int, schedules: int, seed: int, as_json: bool) -> None:
    """Play schedules in which validators crash, lie and conspire while links lose, hold back and aim. Checked after
    every event: agreement, certificates, no honest double signature, no honest validator accused; and a decision
    once the network heals. Exits 1 if anything did not hold.
    """  # noqa: D205 - help text
    from nsllm.simulations.core.schedules import run_schedules

    with Progress(transient=True, disable=as_json) as progress:
        task = progress.add_task("schedules", total=schedules)
        summary = run_schedules(peers, schedules, seed, progress=lambda done: progress.update(task, completed=done))
    if as_json:
        emit(
            {
                "peers": peers,
                "seed": seed,
                "schedules": summary.schedules,
                "violations": len(summary.violations),
                "violated": [{"seed": found.seed, "what": found.what} for found in summary.violations],
                "events_per_schedule": round(summary.events / summary.schedules, 1),
                "per_minute": round(summary.per_minute),
                "digest": summary.digest,
            }
        )
    else:
        click.echo(f"{schedules} schedules, {summary.events} events, {summary.per_minute:,.0f} schedules a minute")
        click.echo(f"digest {summary.digest}")
        for found in summary.violations:
            click.echo(f"seed {found.seed}: {found.what}")
            click.echo(f"  nsllm sim replay --peers {peers} --seed {found.seed}")
        if not summary.violations:
            click.echo("everything held")
    ctx.exit(1 if summary.violations else 0)


@sim.command(
    short_help="One schedule of `core`, event by event.", epilog=examples("nsllm sim replay --peers 4 --seed 7")
)
@click.option("--peers", type=click.IntRange(2, 32), default=4, show_default=True, help="Validators.")
@click.option("--seed", type=int, required=True, help="As `nsllm sim core` named it.")
@json_option
@click.pass_context
def replay(ctx: click.Context, *, peers: int, seed: int, as_json: bool) -> None:
    """Print a schedule's faults, every event with its virtual time and validator, and what did not hold."""
    from nsllm.simulations.core.schedules import replayed

    world, trace, violation = replayed(peers, seed)
    if as_json:
        emit({"faults": world.plan.faults(), "heals_s": world.plan.heals_s, "events": trace, "violation": violation})
    else:
        for fault in world.plan.faults():
            click.echo(f"# {fault}")
        click.echo(f"# the network heals at {world.plan.heals_s:.1f} s")
        click.echo("# seconds  validator  event")
        for line in trace:
            click.echo(line)
        click.echo(f"# {violation or 'everything held'}")
    ctx.exit(1 if violation else 0)


def _scenario(name: str) -> click.Command:
    @click.command(name, help=f"Run the scenario {name!r}.")
    @click.option("--peers", type=click.IntRange(1, 1000), default=8, show_default=True, help="How many peers.")
    @click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same digest.")
    @json_option
    def scenario(*, peers: int, seed: int, as_json: bool) -> None:
        from nsllm.simulations.scenarios import run

        result = run(name, peers=peers, seed=seed)
        if as_json:
            emit(result)
            return
        for field, value in result.items():
            click.echo(f"{field:>20}  {value}")

    return scenario
