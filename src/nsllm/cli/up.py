"""`nsllm up`: one peer, until a signal."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, examples, fetching, json_option, note

if TYPE_CHECKING:
    from nsllm.node.config import PeerConfig
    from nsllm.node.data_folder import Settled

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@click.command(
    short_help="Run a peer.",
    epilog=examples(
        "nsllm up                                        # a network of one, in ~/.local/share/nsllm",
        "nsllm up --data-dir nsllm-devnet/peer-2         # restart a peer of a devnet",
        "nsllm up --data-dir lab --port 8800 --genesis genesis.json \\",
        "         --bootstrap /ip4/192.0.2.7/tcp/4700/p2p/12D3Koo...",
    ),
)
@data_dir_option
@click.option("--port", type=int, help="Port of the API and the page.  [default: 8700]")
@click.option("--host", help="Address of the API and the page; beyond loopback an API key is required.")
@click.option("--genesis", type=click.Path(path_type=Path), help="Genesis file of the network; copied into the folder.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="A peer to dial, ending in /p2p/ID; repeatable.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="libp2p address to listen on; repeatable.")
@click.option(
    "--announce", multiple=True, metavar="MULTIADDR", help="Address to tell others in place of --listen; repeatable."
)
@click.option("--config", type=click.Path(path_type=Path), help="Settings file.  [default: config.toml in the folder]")
@click.option("--name", help="What the page and the log call this peer.")
@click.option("--visibility", type=click.Choice(["private", "group", "public"]), help="Of requests that do not say.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe log messages."
)
@click.option("--with-parent", is_flag=True, help="End when standard input ends, as it does when the parent dies.")
@json_option
def up(
    *,
    data_dir: Path | None,
    port: int | None,
    host: str | None,
    genesis: Path | None,
    bootstrap: tuple[str, ...],
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    config: Path | None,
    name: str | None,
    visibility: str | None,
    log_level: str | None,
    with_parent: bool,
    as_json: bool,
) -> None:
    """Run a peer until SIGINT or SIGTERM. Without a genesis it founds a network of its own. With --json, one line is
    printed once the peer serves.
    """  # noqa: D205 - help text
    from nsllm.cli.lifetime import end_with_parent
    from nsllm.node.settings import load_config

    if with_parent:
        end_with_parent()
    overrides = {
        "api.port": port,
        "api.host": host,
        "genesis": genesis,
        "p2p.bootstrap": bootstrap or None,
        "p2p.listen": listen or None,
        "p2p.announce": announce or None,
        "name": name,
        "visibility": visibility,
        "log_level": log_level,
    }
    run_up(load_config(data_dir_or_default(data_dir), file=config, overrides=overrides), as_json=as_json)


def run_up(config: PeerConfig, *, as_json: bool) -> None:
    """Settle the data folder and run its peer; holds the folder's lock all the while."""
    from nsllm.cli.lifetime import leave, serve
    from nsllm.clock import SystemClock
    from nsllm.node.data_folder import settle
    from nsllm.node.identity import locked
    from nsllm.node.tcp_ports import any_free, require_free

    logging.basicConfig(level=config.log_level.upper(), format=LOG_FORMAT)
    with locked(config.data_dir):
        if config.api.port == 0:
            config = replace(config, api=replace(config.api, port=any_free(config.api.host)))
        require_free(config.api.host, [config.api.port], "give another --port, or stop what runs there")
        with fetching() as report:
            settled = settle(config, SystemClock(), report)
        settled.config.log_effective()
        serve(lambda: _run(settled, as_json=as_json))
    leave()


async def _run(settled: Settled, *, as_json: bool) -> None:
    import trio

    from nsllm.cli.running import api_url, running_at
    from nsllm.node.peer import run_peer

    async with trio.open_nursery() as nursery:
        await nursery.start(run_peer, settled)
        with running_at(settled.config.data_dir, api_url(settled.config)):
            _announce(settled, as_json=as_json)
            await trio.sleep_forever()


def _announce(settled: Settled, *, as_json: bool) -> None:
    from nsllm.cli.running import api_url

    config, genesis = settled.config, settled.genesis
    url = api_url(config)
    if as_json:
        emit(
            {
                "url": url,
                "name": config.name,
                "peer_id": settled.identity.peer_id,
                "address": "0x" + settled.identity.address.hex(),
                "network": genesis.name,
                "network_id": "0x" + genesis.network_id().hex(),
                "data_dir": str(config.data_dir),
                "founded": settled.founded,
            }
        )
        return
    what = "founded network" if settled.founded else "network"
    note(f"[bold green]●[/] [bold]{config.name}[/] serves  [link={url}]{url}[/link]")
    note(
        f"  {what} [bold]{genesis.name}[/] ({genesis.network_id().hex()[:16]}), default visibility {config.visibility}"
    )
    note(f"  data   {config.data_dir}")
    note(f"  ask    nsllm ask 'Why is the sky blue?' --api {url}")
    note("  stop   Ctrl-C")
