"""What this machine can do at most: int8 multiply-adds of all threads at once, and memory read.

A figure that stands beside these says how much a better program could still win here, and whether a load can be carried
at all. Measured with the instruction that the fast path's kernels are made of, from registers, by `limit.c`.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from nsllm.node.engine.fast import build
from nsllm.node.engine.fast.shape import Shape, read_shape

SOURCE: Final = Path(__file__).with_name("limit.c")
ROUNDS: Final = 5
"""The best one counts: whatever else runs only takes away."""
READ_BYTES: Final = 256 << 20
"""Far more than any cache holds."""


@dataclass(frozen=True)
class Limit:
    """The most that was seen, of all threads together."""

    int8_gops: float
    """Billions of int8 operations a second, a multiply-add being two."""
    read_gb_per_s: float

    def or_more(self, other: Limit) -> Limit:
        """The more of both: a machine's clock and its neighbours change from minute to minute."""
        return Limit(max(self.int8_gops, other.int8_gops), max(self.read_gb_per_s, other.read_gb_per_s))


@dataclass(frozen=True)
class Work:
    """Int8 operations that the linear layers of a model take for one token."""

    layers: int
    """All layers: what reading a prompt's token takes."""
    head: int
    """The logits on top: what writing a token takes besides."""

    @classmethod
    def of(cls, shape: Shape) -> Work:
        """Two operations for each weight."""
        width = shape.heads * shape.head_dim
        fused = width + 2 * shape.kv_heads * shape.head_dim
        layer = shape.hidden * (fused + width) + 3 * shape.hidden * shape.inner
        return cls(layers=2 * shape.layers * layer, head=2 * shape.hidden * shape.vocabulary)

    @classmethod
    def of_folder(cls, text: Path) -> Work:
        """Of a model of the Llama family.

        Raises:
            ValueError: the folder holds another kind of model.
        """
        shape = read_shape(json.loads((text / "config.json").read_bytes()))
        if shape is None:
            raise ValueError(f"{text} is no model of the Llama family")
        return cls.of(shape)

    def decode(self, rows: int) -> float:
        """Billions of operations of a step in which `rows` streams gain a token."""
        return rows * (self.layers + self.head) / 1e9

    def prefill(self, tokens: int) -> float:
        """Billions of operations of reading so many tokens of a prompt; the logits of the last one are left out."""
        return tokens * self.layers / 1e9


def measure(threads: int) -> Limit:
    """Measure for about a second. Blocks."""
    with tempfile.TemporaryDirectory() as folder:
        library = _compiled(Path(folder))
        with ThreadPoolExecutor(threads) as pool:
            operations = max(_int8(library, pool, threads) for _ in range(ROUNDS))
            buffer = np.ones(READ_BYTES, np.uint8)
            read = max(_read(library, pool, threads, buffer) for _ in range(ROUNDS))
    return Limit(int8_gops=operations, read_gb_per_s=read)


def _compiled(folder: Path) -> ctypes.CDLL:
    compiler = build.find_compiler()
    if compiler is None:
        raise SystemExit("no C compiler: install gcc")
    target = folder / "limit.so"
    kernels = Path(build.__file__).parent
    subprocess.run([compiler, *build.FLAGS, f"-I{kernels}", str(SOURCE), "-o", str(target), "-lm"], check=True)
    library = ctypes.CDLL(str(target))
    library.multiply_adds.restype = ctypes.c_int64
    library.read_all.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return library


def _int8(library: ctypes.CDLL, pool: ThreadPoolExecutor, threads: int) -> float:
    began = time.perf_counter()
    done = sum(pool.map(lambda _: library.multiply_adds(), range(threads)))
    return 2 * done / (time.perf_counter() - began) / 1e9


def _read(library: ctypes.CDLL, pool: ThreadPoolExecutor, threads: int, buffer: np.ndarray) -> float:
    part = READ_BYTES // threads // 256 * 256
    base = buffer.ctypes.data
    began = time.perf_counter()
    list(pool.map(lambda number: library.read_all(base + number * part, part), range(threads)))
    return threads * part / (time.perf_counter() - began) / 1e9
