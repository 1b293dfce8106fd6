"""What safetensors files hold, from their headers alone: tensors, dtypes, and whether the files are whole.

A file that was cut short has fewer bytes than its header promises, so a half-written model is found without loading it.
Source: safetensors README, "Format" (8 bytes of header length, a JSON header, then the tensors without gaps).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from nsllm.node.errors import ModelMissingError

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
MAX_INDEX_BYTES: Final = 64 << 20
Dtype = Literal["bfloat16", "float32", "int8"]
"""What models are converted to."""
AGAIN: Final = "it was not written to its end: copy or download it again"


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model folder."""

    parameters: int
    dtypes: tuple[str, ...]
    """As safetensors calls them (`BF16`), the one with most parameters first."""
    size_bytes: int


def read_weights(folder: Path) -> Weights:
    """Sum up the `*.safetensors` of a model folder.

    Raises:
        ModelMissingError: no such file, one that is broken or cut short, or one that the index names and is not there.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelMissingError(f"{folder} has no safetensors weights")
    counts: Counter[str] = Counter()
    tensors: dict[str, set[str]] = {}
    for path in paths:
        header = read_header(path)
        tensors[path.name] = set(header)
        for tensor in header.values():
            counts[tensor["dtype"]] += math.prod(tensor["shape"])
    _check_index(folder, tensors)
    ordered = sorted(counts, key=lambda dtype: (-counts[dtype], dtype))
    size_bytes = sum(path.stat().st_size for path in paths)
    return Weights(parameters=counts.total(), dtypes=tuple(ordered), size_bytes=size_bytes)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name to {dtype, shape, data_offsets} of each tensor; the file has exactly the bytes that they say.

    Raises:
        ModelMissingError: it has not, or is no safetensors file.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
            raise ModelMissingError(f"{path} is no safetensors file, or cut short", hint=AGAIN)
        raw = file.read(length)
    try:
        header: dict[str, dict[str, Any]] = json.loads(raw)
        header.pop("__metadata__", None)
        ends_bytes = 8 + length + max((int(row["data_offsets"][1]) for row in header.values()), default=0)
        for row in header.values():
            row["shape"] = [int(size) for size in row["shape"]]
            row["dtype"] = str(row["dtype"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ModelMissingError(f"{path} is no safetensors file", hint=AGAIN) from None
    if ends_bytes != size_bytes:
        raise ModelMissingError(f"{path} has {size_bytes} bytes, its header says {ends_bytes}", hint=AGAIN)
    return header


def _check_index(folder: Path, tensors: dict[str, set[str]]) -> None:
    """Every tensor that an index names is in the file that it names."""
    for path in sorted(folder.glob("*.safetensors.index.json")):
        try:
            if path.stat().st_size > MAX_INDEX_BYTES:
                raise ValueError
            rows = dict(json.loads(path.read_bytes())["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise ModelMissingError(f"{path} is no index of safetensors files", hint=AGAIN) from None
        for tensor, name in rows.items():
            if tensor not in tensors.get(str(name), ()):
                raise ModelMissingError(
                    f"{folder} lacks tensor {tensor!r}, which {path.name} places in {name}", hint=AGAIN
                )
