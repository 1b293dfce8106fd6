"""`nsllm peers`: whom a peer knows."""

from __future__ import annotations

from typing import Any

import click

from nsllm.cli.options import api_options
from nsllm.cli.terminal import emit, escape, examples, json_option, out


@click.command(
    short_help="List the peers that a peer knows.",
    epilog=examples("nsllm peers", "nsllm peers --api http://127.0.0.1:8701 --json | jq -r '.multiaddrs[0]'"),
)
@api_options
@json_option
def peers(*, api: str, key: str, as_json: bool) -> None:
    """List known peers with the addresses that they can be dialled at, the asked peer first. With --json, `multiaddrs`
    holds all addresses (the asked peer's own first) and `peers` the rows.
    """  # noqa: D205 - help text
    import trio

    rows: list[dict[str, Any]] = trio.run(_fetch, api, key)
    multiaddrs = [address for row in rows for address in row.get("multiaddrs", [])]
    if as_json:
        emit({"multiaddrs": multiaddrs, "peers": rows})
    elif not out().is_terminal:
        click.echo("\n".join(multiaddrs))
    else:
        _table(rows)


async def _fetch(url: str, key: str) -> list[dict[str, Any]]:
    from nsllm.cli.client import Api

    async with Api(url, key) as api:
        return list((await api.get("/peers")).get("data", []))


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="dim")
    for name in ("", "member", "roles", "height", "round trip", "dial"):
        table.add_column(name, overflow="fold")
    for i, row in enumerate(rows):
        mark = "[green]●[/]" if row.get("connected") or i == 0 else "[dim]○[/]"
        rtt = "" if row.get("rtt_ms") is None else f"{row['rtt_ms']:.1f} ms"
        table.add_row(
            mark,
            escape((row.get("address") or "not a member")[:14]),
            " ".join(role[0].upper() for role in row.get("roles", [])) + (" (this peer)" if i == 0 else ""),
            "" if row.get("height") is None else str(row["height"]),
            rtt,
            escape("\n".join(row.get("multiaddrs", []))),
        )
    out().print(table)
