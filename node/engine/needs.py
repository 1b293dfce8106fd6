"""How much memory a worker takes for a text model: an estimate from its files, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from nsllm.node.engine.choice import Choice
from nsllm.node.engine.devices import CPU
from nsllm.node.engine.fast.room import Kept, Numerics, block_bytes, block_count
from nsllm.node.engine.fast.shape import Shape, read_shape
from nsllm.node.engine.models import read_config
from nsllm.node.engine.weights import read_weights

BASE_BYTES: Final = 330 << 20
"""A worker without its text model on the fast path: Python, torch, the encoder, tables and work space (measured)."""
GENERAL_BASE_BYTES: Final = 490 << 20
"""The same on the general path: transformers is larger (measured)."""
GENERAL_CONTEXTS: Final = 2
"""Sequences of full context that the general path is reckoned to hold keys and values of."""


def worker_bytes(folder: Path, choice: Choice, cache_mb: int) -> int:
    """Resident memory of a worker that runs the model in `folder` as chosen, its room for keys and values full.

    Args:
        folder: of the model.
        choice: how it runs.
        cache_mb: room for keys and values on the fast and batched paths, which gives two full contexts at least.

    Raises:
        ModelMissingError: no usable model there.
    """
    config = read_config(folder)
    shape = read_shape(config)
    if choice.path == "general" or shape is None:
        return GENERAL_BASE_BYTES + read_weights(folder).size_bytes + GENERAL_CONTEXTS * _context_bytes(config)
    if choice.path == "batched":
        if choice.device != CPU:
            return BASE_BYTES  # the rest lies in the GPU's own memory, which nobody counts
        kept = cast("Kept", choice.dtype)
        room_bytes = block_count(shape, kept, cache_mb) * block_bytes(shape, kept)
        return BASE_BYTES + read_weights(folder).size_bytes + room_bytes
    numerics: Numerics = "int8" if choice.dtype == "int8" else "float32"
    room_bytes = block_count(shape, numerics, cache_mb) * block_bytes(shape, numerics)
    return BASE_BYTES + _packed_bytes(shape, choice) + room_bytes


def _packed_bytes(shape: Shape, choice: Choice) -> int:
    """Linear layers in the numbers that they run in, and the embedding as it is stored."""
    width = shape.heads * shape.head_dim
    layer = shape.hidden * (width + 2 * shape.kv_heads * shape.head_dim) + width * shape.hidden
    layer += 3 * shape.hidden * shape.inner
    linear = shape.layers * layer + shape.hidden * shape.vocabulary
    wide = choice.dtype != "int8"
    return linear * (4 if wide else 1) + shape.hidden * shape.vocabulary * (4 if wide else 2)


def _context_bytes(config: Mapping[str, Any]) -> int:
    """Keys and values of one sequence of full context, two bytes a number; 0 if the configuration does not say."""
    stated = config.get("text_config")
    text: Mapping[str, Any] = stated if isinstance(stated, dict) else config
    try:
        layers = int(text.get("num_hidden_layers") or text["n_layer"])
        heads = int(text.get("num_attention_heads") or text["n_head"])
        hidden = int(text.get("hidden_size") or text["n_embd"])
        tokens = int(text.get("max_position_embeddings") or text["n_positions"])
        kv_heads = int(text.get("num_key_value_heads") or heads)
        head_dim = int(text.get("head_dim") or hidden // heads)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return 0
    return layers * tokens * 2 * kv_heads * head_dim * 2
