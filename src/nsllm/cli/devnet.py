"""`nsllm devnet`: a network of real peers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nsllm.cli.terminal import emit, escape, examples, fetching, json_option, note

if TYPE_CHECKING:
    from nsllm.governance.policy import Policy
    from nsllm.simulations.devnet import Devnet, DevnetEvent
    from nsllm.simulations.timeline import Timeline

DEFAULT_FOLDER = Path("nsllm-devnet")


@click.command(
    short_help="Run a network of real peers on this machine.",
    epilog=examples(
        "nsllm devnet                                     # four peers, pages on 8700 to 8703",
        "nsllm devnet --peers 7 --base-port 9100 --data-dir /tmp/seven",
        "nsllm devnet --scenario churn --seed 1 --data-dir /tmp/churn",
        "nsllm devnet --scenario partition --seed 1 --data-dir /tmp/parted --report parted.html",
        "nsllm ask 'Why is the sky blue?' --api http://127.0.0.1:8700 --receipt r.json",
        "nsllm verify r.json --genesis nsllm-devnet/genesis.json",
    ),
)
@click.option("--peers", type=click.IntRange(1, 64), default=4, show_default=True, help="How many peers.")
@click.option("--base-port", type=int, default=8700, show_default=True, help="Peer i has API and page on this plus i.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Keeps the network: run again to go on with it. Peer i lives in DIR/peer-i, the genesis in DIR/genesis.json.",
)
@click.option(
    "--scenario",
    type=click.Choice(["churn", "suspended", "partition", "delay", "byzantine"]),
    help="Put the processes through something instead of serving on, and check what they leave on their disks.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="With --scenario: of faults and questions.")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="With --scenario: write the run as one HTML file."
)
@json_option
def devnet(
    *,
    peers: int,
    base_port: int,
    data_dir: Path,
    scenario: str | None,
    seed: int,
    report: Path | None,
    as_json: bool,
) -> None:
    """Run a network of real peers on loopback until SIGINT or SIGTERM. A new folder gets keys and a genesis in which
    every peer has all roles and requests are public unless they say otherwise. With --json, one line is printed once
    all peers are ready.
    """  # noqa: D205 - help text
    from nsllm.cli.lifetime import serve

    if report is not None and scenario is None:
        raise click.UsageError("--report is of a run with --scenario")
    laid = lay_out_devnet(peers, base_port, data_dir)
    if scenario is not None:
        name = scenario
        if serve(lambda: _play(laid, name, seed, page=report, as_json=as_json), stop_s=DEVNET_STOP_S):
            raise click.Abort
        return
    serve(lambda: _run(laid, as_json=as_json), stop_s=DEVNET_STOP_S)


DEVNET_STOP_S = 4.8
"""Peers get 4.2 s; a person waits at most 5."""


def lay_out_devnet(peers: int, base_port: int, data_dir: Path) -> Devnet:
    """The devnet in `data_dir`, with the default models fetched."""
    from nsllm.clock import SystemClock
    from nsllm.node.config import models_home
    from nsllm.node.data_folder import policy_for
    from nsllm.node.engine.models import ensure_default_models
    from nsllm.simulations.devnet import lay_out

    def policy() -> Policy:
        with fetching() as report:
            return policy_for(ensure_default_models(models_home(), report))

    return lay_out(data_dir, peers=peers, base_port=base_port, policy=policy, clock=SystemClock())


MARKS = {
    "starting": "[dim]○[/]",
    "waiting": "[yellow]◌[/]",
    "ready": "[green]●[/]",
    "exited": "[red]✗[/]",
    "parted": "[red]≠[/]",
    "slowed": "[yellow]…[/]",
    "healed": "[green]=[/]",
}
"""By kind of event."""


def tell(event: DevnetEvent) -> None:
    """One line for what happened to a peer."""
    note(f"{MARKS[event.kind]} peer {event.peer} {event.kind} [dim]{escape(event.detail)}[/]")


async def _run(laid: Devnet, *, as_json: bool) -> None:
    import trio

    from nsllm.simulations.devnet import run_devnet

    async with trio.open_nursery() as nursery:
        pids = await nursery.start(run_devnet, laid, tell)
        if as_json:
            emit(describe(laid, pids))
        else:
            _announce(laid)


async def _play(laid: Devnet, name: str, seed: int, *, page: Path | None, as_json: bool) -> None:
    import trio

    from nsllm.errors import NsllmError
    from nsllm.simulations.ordeals import BUCKET_S, run_ordeal
    from nsllm.simulations.timeline import Timeline

    timeline = None if page is None else Timeline(BUCKET_S)
    began_s = trio.current_time()
    try:
        result = await run_ordeal(laid, name, seed=seed, report=tell, timeline=timeline)
    except NsllmError as error:
        if page is not None and timeline is not None:
            seconds = round(trio.current_time() - began_s, 3)
            failed: dict[str, str | int | float] = {
                "scenario": name,
                "peers": len(laid.peers),
                "seed": seed,
                "seconds": seconds,
            }
            _write(page, {**failed, "failed": error.message}, timeline)
        raise
    if page is not None and timeline is not None:
        _write(page, result, timeline)
    if as_json:
        emit(result)
    else:
        for key, value in result.items():
            note(f"{key:>20}  {escape(str(value))}")


def _write(page: Path, result: dict[str, str | int | float], timeline: Timeline) -> None:
    from nsllm.files import write_atomic
    from nsllm.simulations.report import render_real

    write_atomic(page, render_real(result, timeline).encode(), mode=0o644)


def describe(laid: Devnet, pids: tuple[int, ...]) -> dict[str, object]:
    """The devnet as `--json` prints it."""
    return {
        "data_dir": str(laid.data_dir),
        "genesis": str(laid.genesis_file),
        "network": laid.genesis.name,
        "network_id": "0x" + laid.genesis.network_id().hex(),
        "peers": [
            {
                "index": peer.index,
                "url": peer.url,
                "data_dir": str(peer.data_dir),
                "peer_id": peer.peer_id,
                "address": "0x" + peer.address.hex(),
                "multiaddr": peer.multiaddr,
                "pid": pid,
                "log": str(peer.log),
            }
            for peer, pid in zip(laid.peers, pids, strict=True)
        ],
    }


def _announce(laid: Devnet) -> None:
    note(f"\n[bold green]{len(laid.peers)} peers serve[/]  network {laid.genesis.network_id().hex()[:16]}")
    for peer in laid.peers:
        note(f"  peer {peer.index}   [link={peer.url}]{peer.url}[/link]")
    note(f"  genesis  {laid.genesis_file}")
    note(f"  logs     {laid.data_dir}/peer-*/peer.log")
    note(f"  ask      nsllm ask 'Why is the sky blue?' --api {laid.peers[0].url}")
    note("  stop     Ctrl-C")
