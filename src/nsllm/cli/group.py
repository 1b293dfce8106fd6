"""`nsllm group`: circles that share answers under a key of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, examples, json_option, note

if TYPE_CHECKING:
    from nsllm.node.groups import GroupFolder


@click.group(
    short_help="Circles that share answers under a key of their own.",
    epilog=examples(
        "nsllm group create lab",
        "nsllm group invite lab                           # a secret: whoever has it reads the group",
        "nsllm group join 'nsllm-group:…'                 # on another machine",
        "nsllm ask 'What did we measure?' --visibility group:lab",
    ),
)
def group() -> None:
    """A group is a key that its members share. Their answers are looked up under keys that nobody else can compute, and
    stand sealed at whoever holds them. A running peer learns of a group at once.
    """  # noqa: D205 - help text


@group.command(epilog=examples("nsllm group create lab", "nsllm group create lab --pad-ms 50"))
@click.argument("name")
@click.option(
    "--pad-ms",
    type=int,
    default=0,
    show_default=True,
    help="Members answer strangers' look-ups at multiples of this time.",
)
@data_dir_option
@json_option
def create(*, name: str, pad_ms: int, data_dir: Path | None, as_json: bool) -> None:
    """Make a group called NAME, with a fresh key."""
    import secrets

    from nsllm.cache_dht.group import KEY_BYTES

    made = _folder(data_dir).create(name, secrets.token_bytes(KEY_BYTES), pad_ms)
    _said(made.name, as_json=as_json, text=f"made; others join with what this prints: nsllm group invite {made.name}")


@group.command("list", epilog=examples("nsllm group list", "nsllm group list --json"))
@data_dir_option
@json_option
def list_groups(*, data_dir: Path | None, as_json: bool) -> None:
    """List the groups that this peer is in."""
    groups = _folder(data_dir).load()
    if as_json:
        emit({"groups": [{"name": each.name, "pad_ms": each.pad_ms} for each in groups]})
        return
    for each in groups:
        click.echo(f"{each.name}  {f'strangers padded to {each.pad_ms} ms' if each.pad_ms else ''}".rstrip())


@group.command(epilog=examples("nsllm group invite lab"))
@click.argument("name")
@data_dir_option
@json_option
def invite(*, name: str, data_dir: Path | None, as_json: bool) -> None:
    """Print the line that lets another peer join NAME. It is the key: send it as you would a password."""
    from nsllm.node.groups import group_invite

    line = group_invite(_folder(data_dir).named(name))
    if as_json:
        emit({"group": name, "invite": line})
    else:
        click.echo(line)


@group.command(epilog=examples("nsllm group join 'nsllm-group:…'", "nsllm group join 'nsllm-group:…' --as their-lab"))
@click.argument("line", metavar="INVITE")
@click.option("--as", "name", metavar="NAME", help="What to call it here.")
@data_dir_option
@json_option
def join(*, line: str, name: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Join the group of INVITE."""
    joined = _folder(data_dir).join(line, name)
    _said(joined.name, as_json=as_json, text=f"joined; ask within it with --visibility group:{joined.name}")


@group.command(epilog=examples("nsllm group leave lab"))
@click.argument("name")
@data_dir_option
@json_option
def leave(*, name: str, data_dir: Path | None, as_json: bool) -> None:
    """Forget NAME: its key, and what this peer kept of its records in the clear. Other members go on; the key that they
    have stays the same.
    """  # noqa: D205 - help text
    _folder(data_dir).leave(name)
    _said(name, as_json=as_json, text="left")


def _folder(data_dir: Path | None) -> GroupFolder:
    from nsllm.files import private_folder
    from nsllm.node.groups import GroupFolder

    return GroupFolder(private_folder(data_dir_or_default(data_dir)))


def _said(name: str, *, as_json: bool, text: str) -> None:
    if as_json:
        emit({"group": name})
    else:
        note(f"[green]✓[/] group {name}: {text}")
