"""`nsllm invite`: one line that lets another machine join."""

from __future__ import annotations

from pathlib import Path

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, examples, json_option, note


@click.command(
    short_help="Print a one-time invite for another machine.",
    epilog=examples(
        "nsllm invite                                    # on the inviting machine, beside its running peer",
        "nsllm invite --data-dir nsllm-devnet/peer-0",
        "nsllm join 'nsllm-invite:…'                     # on the other machine",
    ),
)
@data_dir_option
@click.option("--api", metavar="URL", help="The peer's API.  [default: where the folder's peer serves]")
@json_option
def invite(*, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """Ask the running peer of this data folder for an invite. It admits one member, once, within a day. Whoever has it
    can join: hand it over as you would a password.
    """  # noqa: D205 - help text
    import trio

    from nsllm.cli.running import api_url, running_url
    from nsllm.node.identity import read_admin_key
    from nsllm.node.invitation import parse_invite
    from nsllm.node.settings import load_config

    config = load_config(data_dir_or_default(data_dir))
    admin_key = read_admin_key(config.data_dir)
    url = api or running_url(config.data_dir) or api_url(config)
    text = trio.run(_fetch, url, config.api.key, admin_key)
    invited = parse_invite(text)
    if as_json:
        emit({"invite": text, "addresses": list(invited.addresses), "expires_ms": invited.expires_ms})
        return
    click.echo(text)
    if all("/127." in address or "/ip6/::1/" in address for address in invited.addresses):
        note("[yellow]note:[/] this peer listens on loopback only; the invite works on this machine")


async def _fetch(url: str, key: str, admin_key: str) -> str:
    from nsllm.cli.client import Api

    async with Api(url, key) as api:
        return str((await api.post_admin("/admin/invite", admin_key))["invite"])
