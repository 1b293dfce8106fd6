"""The engine's fast path, step by step.

python -m benchmarks.contestants.fast --text DIR --encoder DIR --threads N
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestants.stage import losses_of, serve
from nsllm.node.engine.backend import Cache, Read
from nsllm.node.engine.choice import choose
from nsllm.node.engine.fast.backend import FastBackend

CACHE_MB = 512
WINDOWS_AT_ONCE = 40


class Fast:
    """`nsllm.node.engine.fast.backend`, as the worker builds it."""

    def __init__(self, text: Path, encoder: Path, threads: int) -> None:
        choice = choose(text, "fast")
        assert choice.library is not None
        numerics: Any = choice.dtype
        self._backend = FastBackend(text, encoder, choice.library, numerics, threads=threads, cache_mb=CACHE_MB)
        self._dtype = choice.dtype
        self._caches: list[Cache] = []

    def about(self) -> dict[str, object]:
        """What it computes in."""
        return {"torch": torch.__version__, "dtype": self._dtype}

    def settings_of(self, task: str, *, thorough: bool) -> list[str]:
        """Tokens that are read at once, where a prompt is read."""
        if task != "prefill":
            return [""]
        return ["64", "128", "256", "512"] if thorough else ["256"]

    def decode(self, texts: Sequence[Sequence[int]], settings: str) -> Callable[[], None]:
        """One token in each stream, the same for every step."""
        del settings
        self._close()
        self._caches = [self._open(text, 2 * len(text)) for text in texts]
        for cache, text in zip(self._caches, texts, strict=True):
            if cache.read < len(text) - 1:
                self._forward([Read(cache, text[cache.read : -1], 0)])
        self._forward([Read(cache, text[-1:], 1) for cache, text in zip(self._caches, texts, strict=True)])
        reads = [Read(cache, [text[5]], 1) for cache, text in zip(self._caches, texts, strict=True)]

        def step() -> None:
            self._forward(reads)

        return step

    def prefill(self, text: Sequence[int], settings: str) -> Callable[[], None]:
        """In pieces, of which none is looked for among known beginnings."""
        self._close()
        piece = int(settings)
        cache = self._open(text[:1], len(text) + 1)  # of one token nothing is known
        self._caches = [cache]

        def read() -> None:
            for start in range(0, len(text), piece):
                part = text[start : start + piece]
                self._forward([Read(cache, part, int(start + len(part) == len(text)))])

        return read

    def generate(self, texts: Sequence[Sequence[int]], tokens: int, settings: str) -> None:
        """Prompts and then tokens, all streams together."""
        del settings
        with self._opened(texts, tokens) as caches:
            reads = [Read(cache, text, 1) for cache, text in zip(caches, texts, strict=True)]
            for _ in range(tokens):
                chosen = [int(logits[0].numpy().argmax()) for logits in self._forward(reads)]
                reads = [Read(cache, [token], 1) for cache, token in zip(caches, chosen, strict=True)]

    def losses(self, windows: Sequence[Sequence[int]], read_at_once: int, settings: str) -> np.ndarray:
        """See `Contestant`."""
        del settings
        self._close()
        parts = [
            self._losses(windows[start : start + WINDOWS_AT_ONCE], read_at_once)
            for start in range(0, len(windows), WINDOWS_AT_ONCE)
        ]
        return np.concatenate(parts)

    def _losses(self, windows: Sequence[Sequence[int]], read_at_once: int) -> np.ndarray:
        found = np.empty((len(windows), len(windows[0]) - 1))
        with self._opened(windows, 0) as caches:
            for row, cache, window in zip(found, caches, windows, strict=True):
                (logits,) = self._forward([Read(cache, window[:read_at_once], read_at_once)])
                row[:read_at_once] = losses_of(logits.numpy(), window[1 : read_at_once + 1])
            for i in range(read_at_once, len(windows[0]) - 1):
                reads = [Read(cache, [window[i]], 1) for cache, window in zip(caches, windows, strict=True)]
                rows = torch.cat(self._forward(reads)).numpy()
                found[:, i] = losses_of(rows, [window[i + 1] for window in windows])
        return found

    @contextmanager
    def _opened(self, texts: Sequence[Sequence[int]], more: int) -> Iterator[list[Cache]]:
        """Sequences that know nothing yet: one token alone is never found among known beginnings."""
        self._close()
        self._caches = [self._open(text[:1], len(text) + more) for text in texts]
        yield self._caches
        self._close()

    def _open(self, tokens: Sequence[int], most: int) -> Cache:
        cache = self._backend.open(tokens, most, side=False)
        assert cache is not None, "no room for keys and values"
        return cache

    def _forward(self, reads: Sequence[Read]) -> list[torch.Tensor]:
        return self._backend.forward(reads)

    def _close(self) -> None:
        for cache in self._caches:
            self._backend.close(cache)
        self._caches = []


def main() -> None:
    """Load the model, and do what standard input says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    serve(Fast(options.text, options.encoder, options.threads))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
