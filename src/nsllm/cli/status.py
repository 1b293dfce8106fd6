"""`nsllm status`: one panel that says how a peer is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nsllm.cli.options import api_options
from nsllm.cli.terminal import emit, escape, examples, json_option, out

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command(
    short_help="Show how a peer is doing.",
    epilog=examples("nsllm status", "nsllm status --api http://127.0.0.1:8702 --json | jq .consensus.height"),
)
@api_options
@json_option
def status(*, api: str, key: str, as_json: bool) -> None:
    """Show a peer's identity, engine, peers, cache, consensus, logs and anchors. What is not known is a dash."""
    import trio

    found: dict[str, Any] = trio.run(_fetch, api, key)
    if as_json:
        emit(found)
        return
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, value in _rows(found):
        table.add_row(name, value)
    ready = found.get("readiness", {}).get("ready")
    title = (
        f"[bold]{escape(str(found.get('name', 'peer')))}[/] {'[green]ready[/]' if ready else '[yellow]not ready[/]'}"
    )
    out().print(
        Panel(table, title=title, title_align="left", border_style="green" if ready else "yellow", expand=False)
    )


async def _fetch(url: str, key: str) -> dict[str, Any]:
    from nsllm.cli.client import Api

    async with Api(url, key) as api:
        return await api.get("/status.json")


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, markup) of each line."""
    readiness, engine, consensus = (found.get(name) or {} for name in ("readiness", "engine", "consensus"))
    cache, logs = found.get("cache") or {}, found.get("logs") or {}
    if not readiness.get("ready"):
        yield "waiting", escape(str(readiness.get("detail", "")))
    yield "member", f"{escape(str(found.get('address', '')))}  {' '.join(found.get('roles', []))}"
    yield "network", f"{escape(str(found.get('network', '')))} {escape(str(found.get('network_id', ''))[:18])}"
    text = engine.get("text") or {}
    speed = engine.get("tokens_per_second")
    rate = f"{speed:.1f} tokens/s" if speed is not None else "no rate yet"
    stand_in = " [yellow](stand-in)[/]" if text.get("stand_in") else " (upstream)" if text.get("upstream") else ""
    busy = f"{_shown(engine.get('active'))} active, {_shown(engine.get('queued'))} queued"
    yield "engine", f"{escape(str(text.get('name', '-')))}{stand_in} {engine.get('state', '-')}, {busy}, {rate}"
    rows = found.get("peers") or []
    others = rows[1:]  # the asked peer comes first
    yield "peers", f"{sum(bool(row.get('connected')) for row in others)} connected, {len(others)} known"
    halted = consensus.get("halted")
    agreed = f"height [bold]{_shown(consensus.get('height'))}[/], quorum {_shown(consensus.get('quorum'))} of "
    agreed += f"{_shown(consensus.get('validators'))}, {_shown(consensus.get('pending'))} pending"
    yield "consensus", f"[bold red]halted: {escape(str(halted))}[/]" if halted else agreed
    for offence in consensus.get("offences") or []:
        kind = escape(str(offence.get("kind", "")).replace("_", " "))
        who = escape(str(offence.get("validator")))
        height = offence.get("height")  # batches have none
        where = f"in epoch {_shown(offence.get('epoch'))}" if height is None else f"at height {_shown(height)}"
        yield "offence", f"[red]{who}: {kind} {where}[/]"
    for row in consensus.get("observers") or []:
        odd = [f"{row[name]} {name}" for name in ("late", "uncommitted", "abstained") if row.get(name)]
        odd += ["equivocated"] if row.get("equivocated") else []
        if odd:
            counts = ", ".join(odd)
            reason = f" ({escape(str(row['reason']))})" if row.get("reason") else ""
            yield "observer", f"{escape(str(row.get('validator', ''))[:18])} {counts}{reason}"
    hits = f"hits {_shown(cache.get('hits_local'))} local, {_shown(cache.get('hits_remote'))} remote"
    hits += f", {_shown(cache.get('hits_semantic'))} for like questions"
    yield "cache", f"{_shown(cache.get('records'))} records, {hits}, misses {_shown(cache.get('misses'))}"
    yield "log", f"size {_shown(logs.get('network_log_size'))}, root {_shown(logs.get('network_log_root'))[:18]}"
    snapshot = logs.get("snapshot_height")
    newest_snapshot = f", snapshot of height {snapshot}" if snapshot is not None else ""
    yield "blocks", f"kept from height {_shown(logs.get('kept_from'))}{newest_snapshot}"
    anchors = found.get("anchors") or []
    if anchors:
        newest = anchors[0]
        yield "anchor", f"log size {_shown(newest.get('log_size'))}, tx {_shown(newest.get('tx'))[:18]}"
    for notice in found.get("notices") or []:
        yield "note", f"[yellow]{escape(str(notice))}[/]"


def _shown(value: object) -> str:
    """A dash says that there is no data."""
    return "-" if value is None else str(value)
