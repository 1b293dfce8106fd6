"""`nsllm sim`: a whole network on a virtual clock, or the agreement alone under attack."""

from __future__ import annotations

from pathlib import Path

import click

from nsllm.cli.sim_core import core, replay
from nsllm.cli.sim_mutants import mutants
from nsllm.cli.terminal import console, emit, examples, json_option


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
        "nsllm sim churn --peers 100 --report churn.html",
        "nsllm sim partition --peers 7 --seed 3 --events",
        "nsllm sim core --schedules 1000 --seed 1",
        "nsllm sim replay --seed 7",
        "nsllm sim mutants",
    ),
)
def sim() -> None:
    """Run a scenario (`nsllm sim list` names them) with the peers' own code on an in-memory network and a virtual
    clock; print what happened and its digest. The model is a stand-in that says so. `core` runs the agreement alone,
    in many short schedules full of faults; `mutants` breaks its rules one by one and sees each found out.
    """  # noqa: D205 - help text


@sim.command("list", short_help="Scenarios by name.", epilog=examples("nsllm sim list --json"))
@json_option
def list_scenarios(*, as_json: bool) -> None:
    """What there is to run."""
    from nsllm.simulations.scenarios import SCENARIOS

    said = {
        name: " ".join(((scenario.play.__doc__ or "").strip().partition("\n")[0], scenario.takes)).strip()
        for name, scenario in SCENARIOS.items()
    }
    said["core"] = "Agreement alone: seeded schedules of faults, Byzantine validators and links that aim."
    said["mutants"] = "Rules of the agreement broken one by one, and what finds each of them out."
    if as_json:
        emit(said)
        return
    for name, about in said.items():
        click.echo(f"{name:>17}  {about}")


sim.add_command(core)
sim.add_command(mutants)
sim.add_command(replay)


def _scenario(name: str) -> click.Command:
    @click.command(name, help=f"Run the scenario {name!r}.")
    @click.option("--peers", type=click.IntRange(1, 1000), default=8, show_default=True, help="How many peers.")
    @click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same digest.")
    @click.option(
        "--validators", type=click.IntRange(1, 16), help="How many of them validate. Default: the scenario's."
    )
    @click.option(
        "--events", is_flag=True, help="Print every event of every peer with its virtual time, then the result."
    )
    @click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the run as one HTML file.")
    @json_option
    def scenario(
        *, peers: int, seed: int, validators: int | None, events: bool, report: Path | None, as_json: bool
    ) -> None:
        from rich.progress import Progress

        from nsllm.files import write_atomic
        from nsllm.simulations.report import render
        from nsllm.simulations.scenarios import SCENARIOS, run
        from nsllm.simulations.trace import Trace

        seen: list[Trace] = []

        def take(trace: Trace) -> None:
            seen.append(trace)
            if events:
                for event in trace.timeline():
                    click.echo(str(event), err=as_json)

        watched = take if events or report is not None else None
        with Progress(console=console(), transient=True, disable=not console().is_terminal) as bar:
            task = bar.add_task("virtual seconds", total=SCENARIOS[name].virtual_s)
            result = run(
                name,
                peers=peers,
                seed=seed,
                validators=validators,
                trace=watched,
                progress=lambda virtual_s: bar.update(task, completed=virtual_s),
            )
        if report is not None:
            write_atomic(report, render(result, seen[0]).encode(), mode=0o644)
        if as_json:
            emit(result)
            return
        for field, value in result.items():
            click.echo(f"{field:>20}  {value}")

    return scenario
