"""The semantic index: FAISS over the records' embeddings, by row id. Derived from the store, rebuilt when it opens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from nsllm.record import EMBEDDING_DIMENSIONS


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One neighbour of a query."""

    row: int
    cosine: float


class SemanticIndex:
    """Inner-product search over unit vectors recovered from quantized embeddings; exact (flat), ids are store rows."""

    def __init__(self) -> None:
        faiss.omp_set_num_threads(1)
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(EMBEDDING_DIMENSIONS))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Add (row id, 384 signed bytes) pairs; a row that is there already is replaced."""
        pairs = list(rows)
        if not pairs:
            return
        ids = np.array([row for row, _ in pairs], dtype=np.int64)
        vectors = np.stack([_unit(embedding) for _, embedding in pairs])
        self._index.remove_ids(faiss.IDSelectorBatch(ids))
        self._index.add_with_ids(vectors, ids)

    def remove(self, rows: Iterable[int]) -> None:
        """Forget rows; unknown ones are ignored."""
        ids = np.array(list(rows), dtype=np.int64)
        if len(ids):
            self._index.remove_ids(faiss.IDSelectorBatch(ids))

    def search(self, embedding: bytes, count: int) -> tuple[Neighbour, ...]:
        """At most `count` neighbours, nearest first; equal cosines in ascending row order."""
        if not len(self) or count < 1:
            return ()
        cosines, ids = self._index.search(_unit(embedding)[None, :], min(count, len(self)))
        found = [Neighbour(int(row), float(cosine)) for row, cosine in zip(ids[0], cosines[0], strict=True) if row >= 0]
        return tuple(sorted(found, key=lambda neighbour: (-neighbour.cosine, neighbour.row)))


def _unit(embedding: bytes) -> NDArray[np.float32]:
    if len(embedding) != EMBEDDING_DIMENSIONS:
        raise ValueError(f"{len(embedding)} bytes of embedding, expected {EMBEDDING_DIMENSIONS}")
    vector = np.frombuffer(embedding, dtype=np.int8).astype(np.float32)
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector
