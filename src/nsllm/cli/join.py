"""`nsllm join`: take an invite, and run the peer that redeems it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, examples, json_option, note


@click.command(
    short_help="Join the network of an invite.",
    epilog=examples(
        "nsllm join 'nsllm-invite:…'",
        "nsllm join - --data-dir lab --port 8800 < invite.txt",
        "nsllm join 'nsllm-invite:…' --no-start          # prepare only; `nsllm up` joins",
    ),
)
@click.argument("text", metavar="INVITE")
@data_dir_option
@click.option("--port", type=int, help="Port of the API and the page.  [default: 8700]")
@click.option("--name", help="What the page and the log call this peer.")
@click.option("--no-start", is_flag=True, help="Write the data folder and stop; `nsllm up` joins.")
@json_option
def join(
    *, text: str, data_dir: Path | None, port: int | None, name: str | None, no_start: bool, as_json: bool
) -> None:
    """Join with INVITE (`-`: standard input): write the network's genesis, the inviter's addresses and the token into
    the data folder, then run the peer, which redeems the token and becomes a contributor and data member.
    """  # noqa: D205 - help text
    from dataclasses import replace

    from nsllm.cli.up import run_up
    from nsllm.errors import UsageError
    from nsllm.governance.genesis import load_genesis, save_genesis
    from nsllm.node.config import GENESIS_FILE
    from nsllm.node.data_folder import listening
    from nsllm.node.identity import locked, open_identity
    from nsllm.node.invitation import parse_invite, save_pending
    from nsllm.node.settings import load_config, save_config

    invited = parse_invite(sys.stdin.read() if text == "-" else text)
    config = load_config(data_dir_or_default(data_dir), overrides={"api.port": port, "name": name})
    with locked(config.data_dir):
        genesis_file = config.data_dir / GENESIS_FILE
        if genesis_file.exists():
            kept = load_genesis(genesis_file)
            if kept.network_id() != invited.genesis.network_id():
                raise UsageError(
                    f"{config.data_dir} belongs to network {kept.name} ({kept.network_id().hex()[:16]})",
                    hint="give another --data-dir for the network of the invite",
                )
        identity = open_identity(config.data_dir)
        bootstrap = tuple(dict.fromkeys((*invited.addresses, *config.p2p.bootstrap)))[:64]
        config = listening(replace(config, p2p=replace(config.p2p, bootstrap=bootstrap), roles=("contributor", "data")))
        save_config(config)
        save_pending(config.data_dir, invited)
        save_genesis(genesis_file, invited.genesis)
    if no_start:
        if as_json:
            emit(
                {
                    "data_dir": str(config.data_dir),
                    "network": invited.genesis.name,
                    "network_id": "0x" + invited.genesis.network_id().hex(),
                    "peer_id": identity.peer_id,
                    "address": "0x" + identity.address.hex(),
                    "bootstrap": list(bootstrap),
                }
            )
        else:
            note(f"[green]✓[/] ready to join {invited.genesis.name}; start with: nsllm up --data-dir {config.data_dir}")
        return
    run_up(config, as_json=as_json)
