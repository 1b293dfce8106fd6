"""`nsllm sim`: a whole network on a virtual clock."""

from __future__ import annotations

import click

from nsllm.cli.terminal import emit, examples, json_option


@click.command(
    short_help="Run a simulated network from a seed.",
    epilog=examples("nsllm sim steady --peers 8 --seed 1 --json", "nsllm sim faults --peers 4 --seed 2"),
)
@click.argument("name")
@click.option("--peers", type=click.IntRange(1, 1000), default=8, show_default=True, help="How many peers.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same digest.")
@json_option
def sim(*, name: str, peers: int, seed: int, as_json: bool) -> None:
    """Run the scenario NAME with the peers' own code on an in-memory network and a virtual clock; print what happened
    and its digest. The model is a stand-in that says so.
    """  # noqa: D205 - help text
    from nsllm.simulations.scenarios import run

    result = run(name, peers=peers, seed=seed)
    if as_json:
        emit(result)
        return
    for field, value in result.items():
        click.echo(f"{field:>20}  {value}")
