"""Embeddings as records carry them: 384 signed bytes, a unit vector times 127, rounded half to even."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nsllm.record import EMBEDDING_DIMENSIONS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DOUBLES: Final = struct.Struct(f"={EMBEDDING_DIMENSIONS}d")


def quantize_embedding(vector: Sequence[float]) -> bytes:
    """A unit vector of 384 floats as 384 signed bytes (times 127, rounded, clipped).

    Raises:
        ValueError: not 384 numbers.

    >>> quantize_embedding([1.0] + [0.0] * 383)[:2]
    b'\\x7f\\x00'
    """
    return quantize_numbers(numbers_of(vector))


def numbers_of(vector: Sequence[float]) -> NDArray[np.float64]:
    """A vector of 384 floats as numpy has them: for whoever computes with it more than once.

    Raises:
        ValueError: not 384 of them.
    """
    if len(vector) != EMBEDDING_DIMENSIONS:
        raise ValueError(f"{len(vector)} dimensions, expected {EMBEDDING_DIMENSIONS}")
    import numpy as np

    return np.frombuffer(_DOUBLES.pack(*vector))


def quantize_numbers(numbers: NDArray[np.float64]) -> bytes:
    """As `quantize_embedding`, of `numbers_of` a vector.

    Raises:
        ValueError: not numbers throughout.
    """
    import numpy as np

    largest = np.abs(numbers).max()
    if not math.isfinite(largest):
        raise ValueError("an embedding that is not numbers throughout")
    if largest > 1.0:
        numbers = np.clip(numbers, -1.0, 1.0)
    return np.rint(numbers * 127).astype(np.int8).tobytes()
