"""Embeddings as records carry them: 384 signed bytes, a unit vector times 127, rounded half to even."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

from nsllm.record import EMBEDDING_DIMENSIONS

_DOUBLES: Final = struct.Struct(f"={EMBEDDING_DIMENSIONS}d")


def quantize_embedding(vector: Sequence[float]) -> bytes:
    """A unit vector of 384 floats as 384 signed bytes (times 127, rounded, clipped).

    Raises:
        ValueError: not 384 numbers.

    >>> quantize_embedding([1.0] + [0.0] * 383)[:2]
    b'\\x7f\\x00'
    """
    if len(vector) != EMBEDDING_DIMENSIONS:
        raise ValueError(f"{len(vector)} dimensions, expected {EMBEDDING_DIMENSIONS}")
    import numpy as np

    numbers = np.frombuffer(_DOUBLES.pack(*vector))
    largest = np.abs(numbers).max()
    if not math.isfinite(largest):
        raise ValueError("an embedding that is not numbers throughout")
    if largest > 1.0:
        numbers = np.clip(numbers, -1.0, 1.0)
    return np.rint(numbers * 127).astype(np.int8).tobytes()
