"""How much memory keys and values take. Imports no torch."""

from __future__ import annotations

from typing import Final, Literal

from nsllm.node.engine.fast.shape import Shape

Numerics = Literal["int8", "float32"]
"""What linear layers compute in on the fast path, and what keys and values are kept in."""
Kept = Literal["int8", "float32", "bfloat16", "float16"]
"""What keys and values are kept in on any path."""
BLOCK_TOKENS: Final = 32
"""Tokens in a block of keys and values; `attention.h`."""
SIDE_CONTEXTS: Final = 1
"""Sequences of full context that side work has room for beside generations."""


def block_bytes(shape: Shape, kept: Kept) -> int:
    """Keys and values of a block, in all layers; int8 has a float32 scale for each token and head."""
    vector_bytes = shape.head_dim + 4 if kept == "int8" else shape.head_dim * (4 if kept == "float32" else 2)
    return shape.layers * 2 * shape.kv_heads * BLOCK_TOKENS * vector_bytes


def context_blocks(shape: Shape) -> int:
    """Of a sequence of full context."""
    return -(-shape.context_tokens // BLOCK_TOKENS)


def block_count(shape: Shape, kept: Kept, cache_mb: int) -> int:
    """As many as `cache_mb` holds; more if one generation and one judgement at full context need it."""
    return max((cache_mb << 20) // block_bytes(shape, kept), (1 + SIDE_CONTEXTS) * context_blocks(shape))
