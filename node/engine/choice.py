"""Which path runs a text model on this machine, in what numbers, and the digest that names the two together.

Peers compare digests: a model in bfloat16 and the same files in int8 give different numbers, so they are different
models to a rubric.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nsllm import canonical
from nsllm.ids import Digest
from nsllm.node.engine.fast.build import build
from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.models import ModelPaths, default_home, model_digest, model_dtype, read_config
from nsllm.node.errors import ConfigError, EngineError

log = logging.getLogger(__name__)

Wish = Literal["auto", "fast", "general"]
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
    """The compiled fast path; None: the general path."""


def choose(folder: Path, wish: Wish) -> Choice:
    """The path for the model in `folder`; compiles the fast one if need be (about 3 s, once). Blocks.

    Raises:
        ModelMissingError: no usable model there.
        ConfigError: the fast path is asked for and cannot run this model here; says why.
    """
    config = read_config(folder)
    stored = model_dtype(config)
    general = Choice(stored, None)
    if wish == "general" and stored != "int8":
        return general
    if read_shape(config) is None or not (folder / "tokenizer.json").is_file():
        reason = "it is not of the Llama family, or differs from it"
    elif stored not in {*QUANTIZED, "float32"}:
        reason = f"its dtype is {stored}"
    elif wish == "general":
        reason = "the general path does not run int8"
    else:
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
    if choice.library is None or sum(path.stat().st_size for path in folder.glob("*.safetensors")) < PACKED_LEAST_BYTES:
        return None
    return default_home(os.environ).absolute() / "packed" / digest.hex()


def text_digest(paths: ModelPaths) -> Digest:
    """What the text model is called when a peer of this machine runs it.

    Raises:
        ModelMissingError, ConfigError: it cannot be run.
    """
    return running_digest(paths.text, choose(paths.text, paths.backend))
