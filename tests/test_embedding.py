"""Embeddings in records: rounded half to even, clipped, refused where they are no numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.embedding import quantize_embedding


def test_embeddings_are_rounded_and_clipped() -> None:
    quantized = quantize_embedding([2.0, -2.0, 0.5, -0.5] + [0.0] * 380)
    assert list(memoryview(quantized).cast("b")[:4]) == [127, -127, 64, -64]
    with pytest.raises(ValueError, match="383"):
        quantize_embedding([0.0] * 383)
    with pytest.raises(ValueError, match="not numbers"):
        quantize_embedding([math.nan] + [0.0] * 383)
    with pytest.raises(ValueError, match="not numbers"):
        quantize_embedding([0.0] * 383 + [-math.inf])


@given(st.lists(st.floats(-1.0, 1.0), min_size=384, max_size=384))
def test_quantized_numbers_are_rounded_half_to_even(vector: list[float]) -> None:
    assert list(memoryview(quantize_embedding(vector)).cast("b")) == [round(x * 127) for x in vector]
