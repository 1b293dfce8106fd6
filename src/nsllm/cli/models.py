"""`nsllm models`: the default models, fetched, listed and converted."""

from __future__ import annotations

from pathlib import Path

import click

from nsllm.cli.terminal import emit, escape, examples, fetching, json_option, note, out


@click.group(
    short_help="Fetch, list and convert models.",
    invoke_without_command=True,
    epilog=examples(
        "nsllm models fetch                              # into $NSLLM_HOME/models, default ~/.cache/nsllm/models",
        "nsllm models list --json",
        "nsllm models convert model.gguf my-model        # for [engine] text_model",
    ),
)
@click.pass_context
def models(ctx: click.Context) -> None:
    """Fetch, list and convert models. Weights are safetensors or GGUF, never pickles."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@models.command(epilog=examples("nsllm models fetch", "NSLLM_HOME=/srv/nsllm nsllm models fetch"))
@json_option
def fetch(*, as_json: bool) -> None:
    """Fetch the default models, check their pinned digests and convert them, once; quick when they are there."""
    from nsllm.node.config import models_home
    from nsllm.node.engine.models import ensure_default_models, model_digest

    with fetching() as report:
        paths = ensure_default_models(models_home(), report)
    rows = {name: {"folder": str(path), "digest": "0x" + model_digest(path).hex()}
            for name, path in (("text", paths.text), ("encoder", paths.encoder))}  # fmt: skip
    if as_json:
        emit(rows)
        return
    for name, row in rows.items():
        note(f"[green]✓[/] {name:8} {escape(row['folder'])} [dim]{row['digest'][:18]}[/]")


@models.command("list", epilog=examples("nsllm models list", "nsllm models list --json"))
@json_option
def list_(*, as_json: bool) -> None:
    """List the model folders of the cache, with the digest that names each."""
    from nsllm.errors import NsllmError
    from nsllm.node.config import models_home
    from nsllm.node.engine.models import model_digest, model_dtype, read_config

    rows: list[dict[str, object]] = []
    store = models_home() / "models"
    for folder in sorted(path for path in store.glob("*") if path.is_dir() and not path.name.startswith(".")):
        size_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        row: dict[str, object] = {"name": folder.name, "folder": str(folder), "size_bytes": size_bytes}
        try:
            rows.append({**row, "dtype": model_dtype(read_config(folder)), "digest": "0x" + model_digest(folder).hex()})
        except NsllmError as error:
            rows.append({**row, "problem": error.message})
    if as_json:
        emit({"store": str(store), "models": rows})
    elif not rows:
        note(f"no models in {escape(str(store))}; fetch them with: nsllm models fetch")
    for row in rows if not as_json else []:
        about = row.get("problem") or f"{row['dtype']}  {str(row['digest'])[:18]}"
        out().print(f"{row['name']!s:28} {int(str(row['size_bytes'])) >> 20:6} MB  {escape(str(about))}")


@models.command(epilog=examples("nsllm models convert model.gguf my-model"))
@click.argument("gguf", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def convert(*, gguf: Path, folder: Path, as_json: bool) -> None:
    """Convert the file GGUF to safetensors in FOLDER, which must not exist yet."""
    from nsllm.errors import UsageError
    from nsllm.node.engine.fetch import convert_in_child
    from nsllm.node.engine.models import model_digest

    if folder.exists():
        raise UsageError(f"{folder} is there already", hint="name a new folder")
    folder.mkdir(parents=True)
    try:
        with fetching() as report:
            convert_in_child(gguf.absolute(), folder.absolute(), report)
    except BaseException:
        _remove(folder)
        raise
    digest = "0x" + model_digest(folder).hex()
    if as_json:
        emit({"folder": str(folder.absolute()), "digest": digest})
    else:
        note(f"[green]✓[/] {folder} [dim]{digest[:18]}[/]; use it as [engine\\] text_model in config.toml")


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
