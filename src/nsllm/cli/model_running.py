"""`nsllm model load | use | unload | loaded`: the text models of a running peer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from nsllm.cli.options import data_dir_option, data_dir_or_default
from nsllm.cli.terminal import emit, escape, examples, json_option, note, out

LOAD_S: Final = 900.0
"""A large model takes minutes: its files are digested, read and packed the first time."""


def add_commands(group: click.Group) -> None:
    """Put the commands into `nsllm model`."""
    for command in (load, use, unload, loaded):
        group.add_command(command)


def _of_a_peer(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which peer is meant."""
    api = click.option("--api", metavar="URL", help="The peer's API.  [default: where the folder's peer serves]")
    return data_dir_option(api(json_option(command)))


@click.command(
    epilog=examples(
        "nsllm model load SmolLM2-360M-Instruct           # beside what is loaded already",
        "nsllm ask --model SmolLM2-360M-Instruct 'Hello'",
    )
)
@click.argument("name")
@_of_a_peer
def load(*, name: str, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """Load a model of the store into the running peer, if the memory allows: a worker of its own, beside the others.
    Lasts until the peer stops; what runs then says [engine] text_model.
    """  # noqa: D205 - help text
    _load(name, data_dir, api, as_json=as_json, default=False)


@click.command(epilog=examples("nsllm model use SmolLM2-360M-Instruct", "nsllm model use smollm2-135m-instruct"))
@click.argument("name")
@_of_a_peer
def use(*, name: str, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """Let a model answer where a request does not say which; it is loaded if it is not yet. Who judges does not
    change: that is the model which the network's rubric names.
    """  # noqa: D205 - help text
    _load(name, data_dir, api, as_json=as_json, default=True)


@click.command(epilog=examples("nsllm model unload SmolLM2-360M-Instruct"))
@click.argument("name")
@_of_a_peer
def unload(*, name: str, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """Unload a model of the running peer: no more requests are taken, those that run may end within 30 seconds."""
    reply = _ask(data_dir, api, "DELETE", f"/admin/models/{quote(name, safe='')}")
    if as_json:
        emit(reply)
    else:
        note(f"[green]✓[/] {escape(name)} is unloaded")


@click.command(epilog=examples("nsllm model loaded", "nsllm model loaded --json"))
@_of_a_peer
def loaded(*, data_dir: Path | None, api: str | None, as_json: bool) -> None:
    """List the text models of the running peer: the default one, state, memory as estimated, generations."""
    reply = _ask(data_dir, api, "GET", "/admin/models")
    if as_json:
        emit(reply)
        return
    for row in reply["data"]:
        memory = "-" if row["memory_mb"] is None else f"{row['memory_mb']} MB"
        marks = ", ".join(filter(None, ("default" * row["default"], "judges" * (not row["removable"]))))
        line = f"{escape(row['id']):32}{row['dtype']:10}{row['state']:11}{memory:>9}  {row['active']} running"
        out().print(f"{line}  {marks}".rstrip(), soft_wrap=True)
    budget = reply["budget_mb"]
    note("no budget: what is free is checked" if budget is None else f"budget {budget} MB (engine.memory_mb)")


def _load(name: str, data_dir: Path | None, api: str | None, *, as_json: bool, default: bool) -> None:
    row = _ask(data_dir, api, "POST", "/admin/models", {"model": name, "default": default})
    if as_json:
        emit(row)
        return
    answers = "answers by default" if row["default"] else "is loaded"
    note(f"[green]✓[/] {escape(name)} {answers}  [dim]{row['dtype']}, about {row['memory_mb']} MB[/]")


def _ask(
    data_dir: Path | None, api: str | None, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the folder's running peer says, asked with the folder's admin key."""
    import trio

    from nsllm.cli.client import Api
    from nsllm.cli.running import api_url, running_url
    from nsllm.node.identity import read_admin_key
    from nsllm.node.settings import load_config

    config = load_config(data_dir_or_default(data_dir))
    admin_key = read_admin_key(config.data_dir)

    async def ask() -> dict[str, Any]:
        async with Api(api or running_url(config.data_dir) or api_url(config), config.api.key) as peer:
            return await peer.administer(method, path, admin_key, body, timeout_s=LOAD_S)

    return trio.run(ask)
