"""A model folder in other numbers: bfloat16 or float32 as plain safetensors, int8 as compressed-tensors stores it.

int8 is what the fast path computes with anyway (a scale an output, the largest magnitude over 127), so nothing is lost
against running the same model from bfloat16; the folder is smaller, and other engines know the format: quant_method
`compressed-tensors`, format `int-quantized`, as llm-compressor writes W8A8 models (neuralmagic/compressed-tensors).

Tensor by tensor, so that memory stays small. Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.weights import Dtype, read_header

FLOATS: Final = ("BF16", "F16", "F32")
CODES: Final = {"bfloat16": "BF16", "float32": "F32"}
LINEAR: Final = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))
"""What int8 models hold in int8; the embedding, which may be the output head as well, and the norms stay bfloat16."""
COPIED: Final = ("*.json", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*", "NOTICE*")
INDEX: Final = "*.safetensors.index.json"
INT8: Final[dict[str, Any]] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
            "output_activations": None,
        }
    },
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
}  # fmt: skip


class ConversionError(ValueError):
    """The model is not of the kind that a converter knows."""


@dataclass(frozen=True, slots=True)
class Out:
    """A tensor that is to be written."""

    name: str
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]
    size_bytes: int
    make: Callable[[], bytes]


def recast(source: Path, folder: Path, dtype: Dtype, report: Callable[[int, int], None]) -> None:
    """Write the model in `source` to `folder` in other numbers; whole numbers and truth values stay as they are.

    Args:
        source: a Hugging Face model folder with safetensors weights.
        folder: exists and is empty.
        dtype: what the weights become.
        report: called with tensors done and total.

    Raises:
        ConversionError: a model that is quantized already, or int8 of one that is not of the Llama family.
        ModelMissingError: weights that are cut short.
        OSError: as the file system says.
    """
    config = json.loads((source / "config.json").read_bytes())
    if config.get("quantization_config"):
        raise ConversionError(f"{source.name} is quantized already: convert what it was made from")
    if dtype == "int8" and read_shape(config) is None:
        kind = (config.get("architectures") or ["architecture not stated"])[0]
        raise ConversionError(
            f"{source.name} ({kind}) cannot be int8: that is for models that the fast path runs, the Llama"
            " family (Llama, Mistral, Qwen2, Qwen3) with its usual widths"
        )
    for pattern in COPIED:
        for path in source.glob(pattern):
            if not path.match(INDEX) and not path.name.startswith("."):
                shutil.copyfile(path, folder / path.name)
    files = {path.name: list(_outs(path, dtype)) for path in sorted(source.glob("*.safetensors"))}
    total = sum(map(len, files.values()))
    done = 0

    def written() -> None:
        nonlocal done
        done += 1
        report(done, total)

    for name, tensors in files.items():
        write_safetensors(folder / name, tensors, written)
    if len(files) > 1:
        size_bytes = sum(tensor.size_bytes for tensors in files.values() for tensor in tensors)
        places = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": size_bytes}, "weight_map": dict(sorted(places.items()))},
        )
    write_json(folder / "config.json", _config(config, dtype))


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of `values` as bfloat16, rounded to nearest even.

    >>> hex(to_bfloat16(np.array([1.0], np.float32))[0])
    '0x3f80'
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def scales(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, 1) of a linear layer (outputs, inputs), as the fast path makes them."""
    found: NDArray[np.float32] = np.abs(values).max(1, keepdims=True) / np.float32(127)
    return found


def to_int8(values: NDArray[np.float32]) -> NDArray[np.int8]:
    """`values` in whole numbers of their scales, rounded to nearest even."""
    whole: NDArray[np.int8] = np.rint(values / np.maximum(scales(values), np.float32(1e-30))).astype(np.int8)
    return whole


def write_safetensors(path: Path, tensors: Sequence[Out], written: Callable[[], None]) -> None:
    """The safetensors file: header length (8 bytes, little endian), JSON header, then the tensors one after another.

    One tensor is in memory at a time; `written` is called after each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors:
            file.write(tensor.make())
            written()


def _outs(source: Path, dtype: Dtype) -> Iterator[Out]:
    """What becomes of each tensor of a file."""
    raw = np.memmap(source, np.uint8, mode="r")
    first = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    for name, row in read_header(source).items():
        start, end = (first + int(offset) for offset in row["data_offsets"])
        shape = tuple(row["shape"])
        count = math.prod(shape)
        if row["dtype"] not in FLOATS:
            if row["dtype"].startswith("F"):
                raise ConversionError(f"{source.name}: {name} is {row['dtype']}, which this converter does not know")
            yield Out(name, row["dtype"], shape, end - start, partial(_bytes, raw[start:end]))
            continue
        read = partial(_floats, raw[start:end], row["dtype"], shape)
        if dtype == "int8" and name.endswith(LINEAR) and len(shape) == 2:
            yield Out(name, "I8", shape, count, partial(_converted, read, to_int8))
            yield Out(f"{name}_scale", "F32", (shape[0], 1), 4 * shape[0], partial(_converted, read, scales))
        elif dtype == "float32":
            yield Out(name, "F32", shape, 4 * count, partial(_converted, read, np.ascontiguousarray))
        else:
            yield Out(name, "BF16", shape, 2 * count, partial(_converted, read, to_bfloat16))


def _bytes(raw: NDArray[np.uint8]) -> bytes:
    return raw.tobytes()


def _floats(raw: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)
    return raw.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32).reshape(shape)


def _converted(
    read: Callable[[], NDArray[np.float32]], convert: Callable[[NDArray[np.float32]], NDArray[Any]]
) -> bytes:
    return convert(read()).tobytes()


def _config(config: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    """The configuration of the result. int8 computes beside its linear layers in bfloat16, as the format says."""
    named = "bfloat16" if dtype == "int8" else dtype
    changed = {
        name: {**value, "dtype": named} if isinstance(value, dict) and ("dtype" in value) else value
        for name, value in config.items()
        if name != "torch_dtype"  # what transformers called it before version 5
    }
    return {**changed, "dtype": named, **({"quantization_config": INT8} if dtype == "int8" else {})}


def write_json(path: Path, value: object) -> None:
    """As this project writes a model's JSON files."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
