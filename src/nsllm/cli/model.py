"""`nsllm model`: models are fetched, listed, added, converted and described, and loaded into a running peer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nsllm.cli.model_running import add_commands
from nsllm.cli.terminal import emit, escape, examples, fetching, json_option, note, out

if TYPE_CHECKING:
    from nsllm.node.engine.about import About


@click.group(
    short_help="Fetch, list, add, convert and describe models; load them into a running peer.",
    invoke_without_command=True,
    epilog=examples(
        "nsllm model fetch                               # the default models, into $NSLLM_HOME/models",
        "nsllm model add HuggingFaceTB/SmolLM2-360M-Instruct",
        "nsllm model list --json",
        "nsllm model info SmolLM2-360M-Instruct",
        "nsllm model load SmolLM2-360M-Instruct           # into the running peer",
    ),
)
@click.pass_context
def model(ctx: click.Context) -> None:
    """Fetch, list, add, convert and describe models, and load them into a running peer. Weights are safetensors or
    GGUF, never pickles; a model's own code is never run. [engine] text_model in config.toml takes a name of the list,
    or a folder.
    """  # noqa: D205 - one sentence
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


add_commands(model)


@model.command(epilog=examples("nsllm model fetch", "NSLLM_HOME=/srv/nsllm nsllm model fetch"))
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


@model.command("list", epilog=examples("nsllm model list", "nsllm model list --json"))
@json_option
def list_(*, as_json: bool) -> None:
    """List the models of the store: parameters, dtype, size, how a worker here would run it and in how much memory,
    the digest that names it, and its licence.
    """  # noqa: D205 - help text
    from nsllm.node.config import EngineConfig, models_home
    from nsllm.node.engine.about import About, read_runs
    from nsllm.node.engine.store import list_models, store_of

    store = store_of(models_home())
    found = list_models(models_home())
    runs = {row.name: read_runs(row, EngineConfig().cache_mb) for row in found if isinstance(row, About)}
    if as_json:
        ways = {name: {"runs": asdict(way) if way else None} for name, way in runs.items()}
        emit({"store": str(store), "models": [asdict(row) | ways.get(row.name, {}) for row in found]})
        return
    if not found:
        note(f"no models in {escape(str(store))}; fetch the default ones with: nsllm model fetch")
    for row in found:
        if isinstance(row, About):
            size = f"{row.parameters / 1e6:8.0f} M {row.dtype:9} {row.size_bytes >> 20:7} MB"
            way = runs[row.name]
            here = f"{way.path} {way.dtype}, {way.memory_mb} MB" if way else "-"
            tail = f"{row.digest[:18]}  {escape(row.licence or 'licence not stated')}"
            out().print(f"{escape(row.name):32}{size}  {here:24}{tail}", soft_wrap=True)
        else:
            out().print(f"{escape(row.name):32}cannot be used: {escape(row.problem)}", soft_wrap=True)


@model.command(
    epilog=examples(
        "nsllm model add ~/models/my-model                # copies; --link leaves the files where they are",
        "nsllm model add HuggingFaceTB/SmolLM2-360M-Instruct --revision main",
        "nsllm model add ./checkpoint-900 --name my-model-900",
    )
)
@click.argument("source", metavar="DIR-OR-HUB-NAME")
@click.option("--name", help="Name in the store.  [default: the last part of the source's name]")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit at the hub.")
@click.option("--link", is_flag=True, help="Link to the files of a folder instead of copying them.")
@json_option
def add(*, source: str, name: str | None, revision: str, link: bool, as_json: bool) -> None:
    """Put a model into the store: a Hugging Face folder of this machine, or a name at the Hugging Face hub. Only
    safetensors weights; the model is there whole or not at all, and an interrupted download goes on where it stopped.
    """  # noqa: D205 - one sentence
    from nsllm.errors import UsageError
    from nsllm.node.config import models_home
    from nsllm.node.engine.store import add_folder, add_from_hub

    folder = Path(source).expanduser()
    with fetching() as report:
        if folder.is_dir():
            added = add_folder(models_home(), folder, name or folder.absolute().name, report, link=link)
        elif link:
            raise UsageError(f"{source} is no folder, so there is nothing to link to", hint="leave out --link")
        else:
            added = add_from_hub(models_home(), source, revision, name or source.rpartition("/")[2], report)
    if as_json:
        emit({**asdict(added.about), "left_out": list(added.left_out)})
        return
    if added.left_out:
        note(f"left out: {escape(', '.join(added.left_out))}")
    _told(added.about)


@model.command(
    epilog=examples(
        "nsllm model convert model.gguf                   # into the store, as bf16, under the file's name",
        "nsllm model convert my-model --dtype int8        # my-model-int8: half the size, for the fast path",
        "nsllm model convert model.gguf /srv/models/my-model --dtype float32",
    )
)
@click.argument("source", metavar="GGUF-OR-MODEL")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option(
    "--dtype", type=click.Choice(["bf16", "float32", "int8", "int4"]), default="bf16", show_default=True,
    help="What the weights become.",
)  # fmt: skip
@json_option
def convert(*, source: str, folder: Path | None, dtype: str, as_json: bool) -> None:
    """Convert a GGUF file of the Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM), a model of the store or a model
    folder to safetensors in other numbers: into the store, or in FOLDER, which must not exist yet.
    int8 is for the Llama family, with a scale an output, as compressed-tensors stores W8A8; answers are those of the
    same model in bf16, which the fast path runs in int8. int4 is refused: what could run it on CPUs here is slower than
    int8 and less exact.
    """  # noqa: D205 - help text
    from nsllm.errors import UsageError
    from nsllm.node.config import models_home
    from nsllm.node.engine.store import convert as convert_to
    from nsllm.node.engine.store import find, store_of
    from nsllm.node.engine.weights import Dtype

    dtypes: dict[str, Dtype] = {"bf16": "bfloat16", "float32": "float32", "int8": "int8"}
    if dtype not in dtypes:
        raise UsageError(
            "int4 is not written: on CPUs, PyTorch's kernels for it are slower than this engine's int8, and the"
            " perplexity of SmolLM2-135M rises by a third with groups of 64 weights",
            hint="convert to int8",
        )
    path = find(models_home(), source) or Path(source).expanduser().absolute()
    if not path.exists():
        raise UsageError(f"{source} is neither a model of the store nor a file or folder", hint="nsllm model list")
    name = path.name if path.is_dir() else path.stem
    suffix = f"-{dtype}" if path.is_dir() or dtype != "bf16" else ""
    target = store_of(models_home()) / f"{name}{suffix}" if folder is None else folder.expanduser().absolute()
    with fetching() as report:
        about = convert_to(models_home(), path, target, report, dtypes[dtype])
    if as_json:
        emit(asdict(about))
    else:
        _told(about)


@model.command(epilog=examples("nsllm model info smollm2-135m-instruct", "nsllm model info ./my-model --json"))
@click.argument("model", metavar="NAME-OR-DIR")
@json_option
def info(*, model: str, as_json: bool) -> None:
    """Describe a model of the store, or of a folder: architecture, parameters, dtype, context, licence, digests, and
    how a worker of this machine would run it.
    """  # noqa: D205 - help text
    from nsllm.node.config import EngineConfig, models_home
    from nsllm.node.engine.about import read_about, read_runs
    from nsllm.node.engine.store import find

    about = read_about(find(models_home(), model) or Path(model).expanduser().absolute())
    runs = read_runs(about, EngineConfig().cache_mb)
    if as_json:
        emit({**asdict(about), "runs": asdict(runs) if runs else None})
        return
    rows = {
        "name": about.name,
        "folder": about.folder,
        "source": about.source or "not stated",
        "architecture": about.architecture or "not stated",
        "parameters": f"{about.parameters:,}",
        "dtype": about.dtype,
        "context": f"{about.context_tokens:,} tokens" if about.context_tokens else "not stated",
        "chat template": "yes" if about.chat_template else "no",
        "licence": f"{about.licence} (says its card)" if about.licence else "not stated",
        "size": f"{about.size_bytes / (1 << 20):,.0f} MB",
        "digest": about.digest,
        "runs here": f"{runs.dtype} on the {runs.path} path" if runs else "no: not a text model of this engine",
        **({"digest then": runs.digest, "memory": f"about {runs.memory_mb:,} MB"} if runs else {}),
    }
    for label, value in rows.items():
        out().print(f"[dim]{label:14}[/] {escape(value)}", soft_wrap=True)


def _told(about: About) -> None:
    licence = about.licence or "not stated"
    note(f"[green]✓[/] {escape(about.folder)} [dim]{about.digest[:18]}[/]  licence {escape(licence)}")
    note(f'  use it: \\[engine] text_model = "{escape(about.name)}" in config.toml')
