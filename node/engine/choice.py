"""Which path runs a text model on this machine, in what numbers, and the digest that names the two together.

Peers compare digests: a model in bfloat16 and the same files in int8 give different numbers, so they are different
models to a rubric.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nsllm import canonical
from nsllm.ids import Digest
from nsllm.node.engine.devices import CPU, HERE, Devices, Way, Wish
from nsllm.node.engine.fast.build import build
from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.gpu import has_gpu
from nsllm.node.engine.models import ModelPaths, default_home, model_digest, model_dtype, read_config
from nsllm.node.errors import ConfigError, EngineError

log = logging.getLogger(__name__)

GPU: Final = "cuda:0"
"""The one that is used where none is named: the first that this process sees."""
FLOATS: Final = ("bfloat16", "float16", "float32")
"""Stored dtypes that the batched path runs as they are."""
QUANTIZED: Final = ("bfloat16", "float16", "int8")
"""Stored dtypes that the fast path runs in int8; a model that is stored in float32 is meant to run in float32."""

SCHEMES: Final = {
    "int8": "int8: the weights of an output share a scale, 64 activations of a row do, and a key, a value, a query each"
}
"""How a dtype is computed; another way needs another text, so that digests tell the two apart."""

EXACT: Final = frozenset(SCHEMES)
"""Dtypes that only our own kernels run, which give the same bits for the same tokens on every machine."""

PACKED_LEAST_BYTES: Final = 16 << 20
"""Smaller models are packed faster than a file is looked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a text model runs."""

    dtype: str
    """`int8`, or as torch calls it."""
    library: Path | None
    """The compiled kernels; beside the batched path they only choose tokens. None: there are none."""
    device: str | None = None
    """Of the batched path, as torch calls it in the worker; None: another path."""

    @property
    def path(self) -> Way:
        """What runs the model."""
        if self.device is not None:
            return "batched"
        return "general" if self.library is None else "fast"


def choose(folder: Path, wish: Wish, devices: Devices = HERE) -> Choice:
    """The path for the model in `folder`; compiles the fast one if need be (about 3 s, once). Blocks.

    Where nothing is said, models of the Llama family run batched on a GPU if there is one, else on the fast path.

    Raises:
        ModelMissingError: no usable model there.
        ConfigError: the path that is asked for cannot run this model here; says why.
    """
    devices.check_path(wish)
    config = read_config(folder)
    stored = model_dtype(config)
    reason = _unlike(folder, config)
    batched = _batched(folder, reason, stored, wish, devices)
    if batched is not None:
        return batched
    general = Choice(stored, None)
    if wish == "general" or devices.names:
        if stored != "int8":
            return general
        reason = reason or "the general path does not run int8"
    if not reason:
        try:
            return Choice("int8" if stored in QUANTIZED else stored, build(default_home(os.environ) / "kernels"))
        except EngineError as error:
            reason = error.message
    if stored == "int8":
        raise ConfigError(
            f"{folder} is stored in int8, which only the fast path runs: {reason}",
            hint="use the model that it was made from",
        )
    if wish == "fast":
        raise ConfigError(f"engine.backend is fast, but cannot run {folder}: {reason}", hint='set it to "auto"')
    log.info("general_path folder=%s reason=%s", folder, reason)
    return general


def _unlike(folder: Path, config: Mapping[str, Any]) -> str:
    """Why neither the fast nor the batched path runs a model; empty if they do."""
    if read_shape(config) is None or not (folder / "tokenizer.json").is_file():
        return "it is not of the Llama family, or differs from it"
    stored = model_dtype(config)
    return "" if stored in {*QUANTIZED, *FLOATS} else f"its dtype is {stored}"


def _batched(folder: Path, reason: str, stored: str, wish: Wish, devices: Devices) -> Choice | None:
    """None: another path runs the model."""
    if not reason and stored not in FLOATS:
        reason = f"it is stored in {stored}"
    if wish == "batched" and reason:
        raise ConfigError(
            f"engine.backend is batched, but cannot run {folder}: {reason}", hint='set engine.backend to "auto"'
        )
    device = None if reason else _device(wish, devices)
    return None if device is None else Choice(stored, _kernels(), device)


def _device(wish: Wish, devices: Devices) -> str | None:
    """Where the batched path would run; None: it is not wanted, or nowhere."""
    if wish not in {"auto", "batched"} or devices.parallel != "none":
        return None
    if devices.names:
        return devices.local(0) if devices.cuda or wish == "batched" else None
    if has_gpu():
        return GPU
    return CPU if wish == "batched" else None


def _kernels() -> Path | None:
    try:
        return build(default_home(os.environ) / "kernels")
    except EngineError as error:
        log.info("tokens_chosen_by_numpy reason=%s", error.message)
        return None


def running_digest(folder: Path, choice: Choice) -> Digest:
    """Over configuration, tokenizer, weights, dtype and quantization.

    Raises:
        ModelMissingError: no usable model there.
    """
    digest = model_digest(folder)
    if choice.dtype not in SCHEMES:  # as it is stored
        return digest
    return canonical.digest("model", b"", canonical.pack({"files": digest, "runs": SCHEMES[choice.dtype]}))


def kin_digests(folder: Path, choice: Choice) -> tuple[Digest, ...]:
    """What the same files are called where they run in other numbers.

    Raises:
        ModelMissingError: no usable model there.
    """
    own, stored = running_digest(folder, choice), Choice(model_dtype(read_config(folder)), None)
    others = (stored, *(Choice(dtype, None) for dtype in SCHEMES))
    return tuple(digest for digest in dict.fromkeys(running_digest(folder, one) for one in others) if digest != own)


def packed_place(folder: Path, choice: Choice, digest: Digest) -> Path | None:
    """Where workers keep the packed weights of a model that runs under this digest: the file's folder and its name's
    beginning. None where that would not pay.
    """  # noqa: D205 - one sentence
    if choice.path != "fast" or sum(path.stat().st_size for path in folder.glob("*.safetensors")) < PACKED_LEAST_BYTES:
        return None
    return default_home(os.environ).absolute() / "packed" / digest.hex()


def text_digest(paths: ModelPaths) -> Digest:
    """What the text model is called when a peer of this machine runs it.

    Raises:
        ModelMissingError, ConfigError: it cannot be run.
    """
    return running_digest(paths.text, choose(paths.text, paths.backend, paths.devices))
