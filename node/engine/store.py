"""Models that a user puts into the store: copied, linked, downloaded or converted, complete or not there at all.

Each is made in `.part-NAME` beside its place, checked (configuration, safetensors headers, no code of its own),
digested and then renamed. A part that was left half-done is never used; that of a download is gone on with. The default
models have their own pinned way, see `nsllm.node.engine.models`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from nsllm.node.engine import hub
from nsllm.node.engine.about import About, read_about
from nsllm.node.engine.fetch import CONVERT_LOG, Progress, Report, clear_disk_errors, convert_in_child
from nsllm.node.engine.models import MARKER, is_complete, locked, model_digest, read_config
from nsllm.node.engine.origin import write_source
from nsllm.node.engine.weights import Dtype, read_weights
from nsllm.node.errors import ModelMissingError

STORE: Final = "models"
PART: Final = ".part-"
KEPT: Final = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*", "NOTICE*")
"""What a model is made of: weights, configuration, tokenizer, template, card and licence."""
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
CHUNK_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Added:
    """A model that is in the store now."""

    about: About
    left_out: tuple[str, ...]
    """Files of the source that are no part of a model here: pickles, code, other formats."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A folder of the store that cannot be used."""

    name: str
    folder: str
    problem: str


def store_of(home: Path) -> Path:
    """The folder of all models below `$NSLLM_HOME`."""
    return home / STORE


def find(home: Path, name: str) -> Path | None:
    """Folder of the model called `name` in the store; None if there is none that is whole."""
    folder = store_of(home) / name
    return folder if NAME.fullmatch(name) and is_complete(folder) else None


def list_models(home: Path) -> list[About | Broken]:
    """Every model of the store, by name."""
    rows: list[About | Broken] = []
    for folder in sorted(store_of(home).glob("*")):
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                rows.append(read_about(folder))
            except (ModelMissingError, OSError) as error:
                rows.append(Broken(folder.name, str(folder), str(error)))
    return rows


def add_folder(home: Path, source: Path, name: str, report: Report, *, link: bool = False) -> Added:
    """Put the model in the folder `source` into the store as `name`.

    Args:
        home: `$NSLLM_HOME`.
        source: a Hugging Face model folder with safetensors weights.
        name: what the store, and every peer that serves it, calls the model.
        report: progress, in bytes.
        link: symbolic links to the source's files instead of copies; the source must then stay where it is.

    Raises:
        ModelMissingError: not a model that can be used here (says which file), a name that is taken, or no space.
    """
    source = source.absolute()
    files, left_out = chosen([path.name for path in source.iterdir() if path.is_file()], str(source))
    check_no_code(source)
    step, total = f"{'link' if link else 'copy'} {source.name}", sum((source / file).stat().st_size for file in files)
    with _part(home, name, 0 if link else total, report) as part:
        _empty(part)
        done = 0
        for file in files:
            if link:
                (part / file).symlink_to((source / file).resolve())
            else:
                for chunk_bytes in _copied(source / file, part / file):
                    done += chunk_bytes
                    report(Progress(step, min(done, total - 1), total, "bytes"))
        report(Progress(step, total, total, "bytes"))
        about = _place(part, store_of(home) / name, f"{'link' if link else 'folder'}:{source}")
    return Added(about, left_out)


def add_from_hub(home: Path, repository: str, revision: str, name: str, report: Report) -> Added:
    """Download a model of the Hugging Face hub into the store as `name`; an interrupted download goes on.

    Raises:
        ModelMissingError: no network, no such model, one that cannot be used here, a taken name, or no space.
    """
    plan = hub.plan(repository, revision)
    files, left_out = chosen(list(plan.sizes), repository)
    small = [file for file in files if not file.endswith(".safetensors")]
    total = sum(plan.sizes[file] for file in files)
    with _part(home, name, total, report) as part:
        # What says whether the model can be used comes first: nobody downloads gigabytes to be refused.
        hub.get(plan, small, part, report)
        check_no_code(part)
        hub.get(plan, [file for file in files if file not in small], part, report)
        _empty(part, keep=files)
        about = _place(part, store_of(home) / name, f"hub:{repository}@{plan.commit}")
    return Added(about, left_out)


def convert(home: Path, source: Path, target: Path, report: Report, dtype: Dtype = "bfloat16") -> About:
    """Write a model in other numbers to `target`, which must not exist.

    Args:
        home: `$NSLLM_HOME`; what is made in its store says where it came from.
        source: a GGUF file of a Llama model, or a model folder with safetensors weights.
        target: a folder anywhere.
        report: progress, in tensors.
        dtype: what the weights become.

    Raises:
        ModelMissingError: the converter does not know the architecture or the tokenizer, or no space.
    """
    if not NAME.fullmatch(target.name):
        raise ModelMissingError(f"{target.name!r} is no name for a model", hint="letters, digits, dots, hyphens")
    if source.is_dir():
        chosen([path.name for path in source.iterdir() if path.is_file()], str(source))
        read_config(source)
    place = target.parent
    place.mkdir(parents=True, exist_ok=True)
    with _making(place, target.name, 0, report) as part:
        _empty(part)
        folder = part / target.name
        folder.mkdir()
        convert_in_child(source.absolute(), folder, report, dtype)
        for path in list(folder.iterdir()):
            path.rename(part / path.name)
        folder.rmdir()
        (part / CONVERT_LOG).unlink()
        kind = "folder" if source.is_dir() else "gguf"
        return _place(part, target, f"{kind}:{source.name} as {dtype}" if place == store_of(home) else None)


def chosen(names: Sequence[str], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(files that make up the model, files that are left out), each in order of name.

    Raises:
        ModelMissingError: no configuration, or no safetensors weights; names what is there instead.
    """
    flat = sorted(name for name in names if "/" not in name and not name.startswith("."))
    kept = tuple(name for name in flat if any(fnmatchcase(name, pattern) for pattern in KEPT))
    left_out = tuple(sorted(set(names) - set(kept) - {name for name in names if name.startswith(".")}))
    if not any(name.endswith(".safetensors") for name in kept):
        pickles = [name for name in flat if any(fnmatchcase(name, pattern) for pattern in PICKLES)]
        ggufs = [name for name in flat if name.endswith(".gguf")]
        found = f"{pickles[0]} is a pickle, which can run code" if pickles else "there are no weights"
        found = f"{ggufs[0]} is a GGUF file" if ggufs else found
        hint = "nsllm model convert makes safetensors of it" if ggufs else "only safetensors are taken"
        raise ModelMissingError(f"{where} has no safetensors weights: {found}", hint=hint)
    if "config.json" not in kept:
        raise ModelMissingError(f"{where} has no config.json", hint="a Hugging Face model folder is wanted")
    return kept, left_out


def check_no_code(folder: Path) -> None:
    """Pass silently if no JSON file of the folder asks for code of the model's own.

    Raises:
        ModelMissingError: names the file and the class.
    """
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size > hub.MAX_JSON_BYTES:
            continue  # a vocabulary, or an index: checked where it is used
        try:
            value = json.loads(path.read_bytes())
        except ValueError:
            raise ModelMissingError(f"{path} is not JSON", hint="copy or download it again") from None
        wants = value.get("auto_map") if isinstance(value, dict) else None
        if wants:
            shown = next(iter(wants.values())) if isinstance(wants, dict) and wants else wants
            raise ModelMissingError(
                f"{path.name} wants to run code of the model's own ({str(shown)[:80]})",
                hint="remote code is never run: choose another model",
            )


@contextmanager
def _part(home: Path, name: str, need_bytes: int, report: Report) -> Iterator[Path]:
    if not NAME.fullmatch(name):
        raise ModelMissingError(f"{name!r} is no name for a model", hint="--name takes letters, digits, dots, hyphens")
    store = store_of(home)
    with clear_disk_errors(store, need_bytes):
        store.mkdir(parents=True, exist_ok=True)
    with _making(store, name, need_bytes, report) as part:
        yield part


@contextmanager
def _making(place: Path, name: str, need_bytes: int, report: Report) -> Iterator[Path]:
    """The folder `place/.part-NAME`, which stays if the block fails; one process at a time."""
    target, part = place / name, place / f"{PART}{name}"
    taken = ModelMissingError(f"{target} is there already", hint="choose another name, or remove that folder")
    if target.exists():
        raise taken
    part.mkdir(exist_ok=True)
    with clear_disk_errors(place, need_bytes), locked(part, report):
        if target.exists():  # the process that we waited for has made it
            raise taken
        free_bytes = shutil.disk_usage(place).free + sum(path.stat().st_size for path in part.rglob("*"))
        if free_bytes < need_bytes:
            raise ModelMissingError(
                f"{free_bytes >> 20} MB are free in {place}, {need_bytes >> 20} MB are needed",
                hint="free some, or set NSLLM_HOME to another folder",
            )
        yield part


def _place(part: Path, target: Path, source: str | None) -> About:
    """Check what was made, mark it and put it in place."""
    read_config(part)
    read_weights(part)
    if source is not None:
        write_source(part, source)
    model_digest(part)  # writes the marker, after everything else
    if not is_complete(part):
        raise ModelMissingError(f"cannot finish {target}: {MARKER} cannot be written")
    part.rename(target)
    return read_about(target)


def _empty(part: Path, keep: Sequence[str] = ()) -> None:
    for path in sorted(part.iterdir()):
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _copied(source: Path, target: Path) -> Iterator[int]:
    """Copy a file; yields the size of each chunk."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
            yield len(chunk)
