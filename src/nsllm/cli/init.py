"""`nsllm init`: a data folder, before anything runs on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, examples, fetching, json_option, note

if TYPE_CHECKING:
    from nsllm.consensus.registry import Member


@click.command(
    short_help="Make a data folder: keys, settings, genesis.",
    epilog=examples(
        "nsllm init                                      # a network of one",
        "nsllm init --data-dir lab --keys-only           # print this peer's member entry for a common genesis",
        "nsllm init --data-dir lab --network lab --with 0x52…@12D3Koo… --with 0x9f…@12D3Koo…",
    ),
)
@data_dir_option
@click.option("--name", help="What the page and the log call this peer.")
@click.option("--port", type=int, help="Port of the API and the page.")
@click.option("--network", default="solo", show_default=True, help="Name of the network that is founded.")
@click.option(
    "--with", "others", multiple=True, metavar="MEMBER", help="Another founding member, as --keys-only prints it."
)
@click.option("--local", is_flag=True, help="With --with: one trusted LAN; private address ranges may be dialled.")
@click.option("--keys-only", is_flag=True, help="Make keys and settings, no genesis.")
@json_option
def init(
    *,
    data_dir: Path | None,
    name: str | None,
    port: int | None,
    network: str,
    others: tuple[str, ...],
    local: bool,
    keys_only: bool,
    as_json: bool,
) -> None:
    """Make keys, settings and a genesis in the data folder. What is there already stays as it is. With --with, the
    members named found the network together, each with all roles; share the genesis.json with them.
    """  # noqa: D205 - help text
    from nsllm.clock import SystemClock
    from nsllm.governance.genesis import load_genesis, save_genesis
    from nsllm.node.config import GENESIS_FILE
    from nsllm.node.data_folder import listening, model_paths, policy_for
    from nsllm.node.founding import found, founder
    from nsllm.node.identity import locked, open_identity
    from nsllm.node.settings import load_config, save_config

    folder = data_dir_or_default(data_dir)
    config = load_config(folder, overrides={"name": name, "api.port": port})
    with locked(config.data_dir):
        identity = open_identity(config.data_dir)
        config = listening(config)
        save_config(config)
        genesis_file = config.data_dir / GENESIS_FILE
        genesis = load_genesis(genesis_file) if genesis_file.exists() else None
        if genesis is None and not keys_only:
            with fetching() as report:
                policy = policy_for(model_paths(config, report))
            members = [founder(identity), *(_member(text) for text in others)]
            genesis = found(network, members, policy, SystemClock().now_ms(), local=local or not others)
            save_genesis(genesis_file, genesis)
    entry = f"0x{identity.address.hex()}@{identity.peer_id}"
    if as_json:
        emit(
            {
                "data_dir": str(config.data_dir),
                "member": entry,
                "peer_id": identity.peer_id,
                "address": "0x" + identity.address.hex(),
                "listen": list(config.p2p.listen),
                "network": None if genesis is None else genesis.name,
                "network_id": None if genesis is None else "0x" + genesis.network_id().hex(),
                "genesis": None if genesis is None else str(genesis_file),
            }
        )
        return
    note(f"[green]✓[/] data folder  {config.data_dir}")
    note(f"[green]✓[/] member       {entry}")
    if genesis is not None:
        note(f"[green]✓[/] network      {genesis.name} ({genesis.network_id().hex()[:16]}), {genesis_file}")
        note(f"  start it with: nsllm up --data-dir {config.data_dir}")


def _member(text: str) -> Member:
    from nsllm.consensus.registry import Member
    from nsllm.errors import UsageError
    from nsllm.ids import Address, PeerId
    from nsllm.node.founding import ALL_ROLES

    if not re.fullmatch(r"0x[0-9a-f]{40}@[1-9A-HJ-NP-Za-km-z]{20,128}", text):
        raise UsageError(f"{text!r} is not a member entry", hint="paste what `nsllm init --keys-only` printed there")
    address, _, peer_id = text.partition("@")
    return Member(address=Address(bytes.fromhex(address[2:])), peer_id=PeerId(peer_id), roles=ALL_ROLES)
