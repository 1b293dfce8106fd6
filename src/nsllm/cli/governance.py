"""`nsllm governance`: what the validators decide about members, policy and records: seen, moved, approved, proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, examples, json_option, note


@click.group(
    short_help="Motions of the validators: list, propose, approve.",
    epilog=examples(
        "nsllm governance list",
        "nsllm governance propose admit 0x… --role contributor --role data --role validator",
        "nsllm governance propose suspend 0x…",
        "nsllm governance policy > policy.json            # edit it, then:",
        "nsllm governance propose policy policy.json",
        "nsllm governance approve 0x12345678              # on other validators, until enough have",
        "nsllm governance propose retract 0x…             # a record: take it back",
        "nsllm governance removals 0x…                    # who has proved that it is gone",
    ),
)
def governance() -> None:
    """Members and policy change by motion, and records are taken back by one: one validator proposes, others approve
    through their own peers, and once as many have as the policy asks for, a block holds the motion. It takes effect at
    the next height.
    """  # noqa: D205 - help text


@governance.command("list", epilog=examples("nsllm governance list", "nsllm governance list --json"))
@data_dir_option
@json_option
def list_motions(*, data_dir: Path | None, as_json: bool) -> None:
    """List waiting and decided motions, and the members."""
    found = _asked(data_dir, "GET", "/admin/governance", None)
    if as_json:
        emit(found)
        return
    needed = found["approvals_needed"]
    for row in found["waiting"]:
        about = f" {row['about']}" if row["about"] else ""
        click.echo(f"{row['motion'][:18]}  {row['kind']}{about}  {len(row['approvals'])} of {needed} approvals")
    for row in found["decided"]:
        click.echo(f"{row['motion'][:18]}  decided at height {row['height']}")
    for row in found["members"]:
        state = "validates" if row["validates"] else "suspended" if row["weight"] == 0 else ""
        click.echo(f"{row['address']}  {', '.join(row['roles'])}  {state}".rstrip())


@governance.command(epilog=examples("nsllm governance policy > policy.json"))
@data_dir_option
@json_option
def policy(*, data_dir: Path | None, as_json: bool) -> None:
    """Print the policy in force, to be edited and proposed: JSON in any case."""
    found = _asked(data_dir, "GET", "/admin/governance", None)
    if as_json:
        import json

        emit(json.loads(found["policy"]))
        return
    click.echo(found["policy"], nl=False)


@governance.command(
    epilog=examples(
        "nsllm governance propose admit 0x… --role validator --role contributor --role data",
        "nsllm governance propose revoke 0x…",
        "nsllm governance propose policy policy.json",
        "nsllm governance propose retract 0x…",
    )
)
@click.argument("kind", type=click.Choice(["admit", "policy", "retract", "revoke", "suspend"]))
@click.argument("subject")
@click.option("--role", "roles", multiple=True, help="admit: a role that the member shall have; repeat it.")
@click.option("--peer-id", metavar="ID", help="admit: libp2p identity of somebody who is no member yet.")
@data_dir_option
@json_option
def propose(
    *, kind: str, subject: str, roles: tuple[str, ...], peer_id: str | None, data_dir: Path | None, as_json: bool
) -> None:
    """Make a motion and approve it. SUBJECT is a member's address, the policy's file, or a record's digest."""
    body: dict[str, Any] = {"kind": kind}
    if kind == "policy":
        from nsllm.files import read_bounded

        body["policy"] = read_bounded(Path(subject), limit_bytes=65536).decode("utf-8", "replace")
    else:
        body["record" if kind == "retract" else "address"] = subject
    if kind == "admit":
        body |= {"roles": roles} | ({"peer_id": peer_id} if peer_id else {})
    answer = _asked(data_dir, "POST", "/admin/governance", body)
    if as_json:
        emit(answer)
        return
    note(f"[green]✓[/] proposed; others approve it with: nsllm governance approve {answer['motion'][:18]}")


@governance.command(epilog=examples("nsllm governance approve 0x12345678"))
@click.argument("motion")
@data_dir_option
@json_option
def approve(*, motion: str, data_dir: Path | None, as_json: bool) -> None:
    """Approve MOTION: its digest, or the first eight or more digits of it."""
    answer = _asked(data_dir, "POST", "/admin/governance/approve", {"motion": motion})
    if as_json:
        emit(answer)
        return
    note("[green]✓[/] approved")


@governance.command(epilog=examples("nsllm governance removals 0x…", "nsllm governance removals 0x… --json"))
@click.argument("record")
@data_dir_option
@json_option
@click.pass_context
def removals(ctx: click.Context, *, record: str, data_dir: Path | None, as_json: bool) -> None:
    """Ask every member that stores records to sign that it has removed the revoked RECORD, and whether it serves it
    still. Exit status 1 while one of them has not proved it.
    """  # noqa: D205 - help text
    found = _asked(data_dir, "GET", f"/admin/removals/{quote(record, safe='')}", None)
    if as_json:
        emit(found)
    elif found["revoked_height"] is None:
        note(f"{found['record'][:18]} is not revoked")
    else:
        click.echo(f"{found['record'][:18]}  revoked at height {found['revoked_height']}")
        for row in found["holders"]:
            since = f"signed at height {row['height']}" if row["height"] is not None else ""
            click.echo(f"{row['holder']}  {row['verdict']:<9}  {row['detail'] or since}".rstrip())
    if not found["complete"]:
        ctx.exit(1)


def _asked(data_dir: Path | None, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """What the running peer of the folder answers."""
    import trio

    from nsllm.cli.client import Api
    from nsllm.cli.running import api_url, running_url
    from nsllm.node.identity import read_admin_key
    from nsllm.node.settings import load_config

    config = load_config(data_dir_or_default(data_dir))
    admin_key = read_admin_key(config.data_dir)
    url = running_url(config.data_dir) or api_url(config)

    async def ask() -> dict[str, Any]:
        async with Api(url, config.api.key) as api:
            return await api.administer(method, path, admin_key, body)

    return trio.run(ask)
