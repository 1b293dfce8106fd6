"""The semantic index: nearest questions by row id. Derived from the store, rebuilt when it opens.

Two stages: signs first, 384 bits a question, by Hamming distance over all (FAISS), then the exact cosine of the few
that are left. At 100,000 questions the first stage reads 5 MB where all vectors would be 38 MB (`benchmarks/cache.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from nsllm.record import EMBEDDING_DIMENSIONS

SHORTLIST: Final = 128
"""Nearest by signs whose cosine is computed; a cosine of 0.8 is 79 differing signs of 384, chance is 192."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One neighbour of a query."""

    row: int
    cosine: float


class SemanticIndex:
    """Cosine search over quantized embeddings; ids are store rows."""

    def __init__(self) -> None:
        self._signs = faiss.IndexBinaryFlat(EMBEDDING_DIMENSIONS)
        self._rows: NDArray[np.int64] = np.empty(0, np.int64)
        """Row ids in the order of the index, with room at the end."""
        self._vectors: NDArray[np.int8] = np.empty((0, EMBEDDING_DIMENSIONS), np.int8)
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Add (row id, 384 signed bytes) pairs; a row that is there already is replaced."""
        pairs = dict(rows)
        if not pairs:
            return
        vectors = np.stack([_signed(embedding) for embedding in pairs.values()])
        self.remove(self._known & pairs.keys())
        count = len(self)
        self._make_room(count + len(pairs))
        self._rows[count : count + len(pairs)] = list(pairs)
        self._vectors[count : count + len(pairs)] = vectors
        self._signs.add(np.packbits(vectors >= 0, axis=1))
        self._known |= pairs.keys()

    def remove(self, rows: Iterable[int]) -> None:
        """Forget rows; unknown ones are ignored."""
        gone = self._known & set(rows)
        if not gone:
            return
        count = len(self)
        stay = ~np.isin(self._rows[:count], list(gone))
        self._signs.remove_ids(np.flatnonzero(~stay))  # the others keep their order
        left = count - len(gone)
        self._rows[:left] = self._rows[:count][stay]
        self._vectors[:left] = self._vectors[:count][stay]
        self._known -= gone

    def search(self, embedding: bytes, count: int) -> tuple[Neighbour, ...]:
        """At most `count` neighbours, nearest first; equal cosines in ascending row order."""
        if not len(self) or count < 1:
            return ()
        query = _signed(embedding)
        faiss.omp_set_num_threads(1)  # holds for the calling thread only; two that wait for each other cost 100 ms
        _, places = self._signs.search(np.packbits(query >= 0)[None], min(max(count, SHORTLIST), len(self)))
        near = self._vectors[places[0]].astype(np.float32)
        wanted = query.astype(np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", near, near) * (wanted @ wanted))
        cosines, rows = near @ wanted / np.maximum(norms, 1.0), self._rows[places[0]]
        best = np.lexsort((rows, -cosines))[:count]
        return tuple(map(Neighbour, rows[best].tolist(), cosines[best].tolist()))

    def _make_room(self, count: int) -> None:
        if count > len(self._rows):
            room = max(1024, count, 3 * len(self._rows) // 2)
            rows, vectors = np.empty(room, np.int64), np.empty((room, EMBEDDING_DIMENSIONS), np.int8)
            rows[: len(self)], vectors[: len(self)] = self._rows[: len(self)], self._vectors[: len(self)]
            self._rows, self._vectors = rows, vectors


def _signed(embedding: bytes) -> NDArray[np.int8]:
    if len(embedding) != EMBEDDING_DIMENSIONS:
        raise ValueError(f"{len(embedding)} bytes of embedding, expected {EMBEDDING_DIMENSIONS}")
    return np.frombuffer(embedding, dtype=np.int8)


def cosine(one: bytes, other: bytes) -> float:
    """Cosine of two quantized embeddings; 0 if one of them is zero."""
    first, second = _signed(one).astype(np.float32), _signed(other).astype(np.float32)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else 0.0
