"""What a model of the Llama family looks like, and whether the fast path runs it. Reads configurations only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nsllm.node.engine.fast.rope import Rope, read_rope

FAMILY: Final = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
LANES: Final = 16
"""Widths are whole numbers of them."""
GROUP_MOST: Final = 96
"""Query heads that share a key head."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and constants of a model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    context_tokens: int
    epsilon: float
    rope: Rope
    qkv_bias: bool
    """Qwen2."""
    head_norm: bool
    """Queries and keys are normalized a head (Qwen3)."""
    tied: bool
    """The output head is the embedding."""


def is_int8(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that linear layers are stored in int8 with a scale an output: compressed-tensors'
    `int-quantized` with the strategy `channel`, as W8A8 models are.
    """  # noqa: D205 - one sentence
    stated = config.get("quantization_config")
    if not isinstance(stated, dict) or stated.get("quant_method") != "compressed-tensors":
        return False
    groups = stated.get("config_groups")
    rows = [row.get("weights") for row in groups.values() if isinstance(row, dict)] if isinstance(groups, dict) else []
    wanted = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    return (
        stated.get("format") == "int-quantized"
        and bool(rows)
        and all(isinstance(row, dict) and wanted.items() <= row.items() for row in rows)
    )


def read_shape(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json describes; None if the fast path does not run such a model."""
    architecture = (config.get("architectures") or [None])[0]
    try:
        rope = read_rope(config)
        if rope is None:
            return None
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        shape = Shape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            inner=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context_tokens=int(config["max_position_embeddings"]),
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope=rope,
            qkv_bias=architecture == "Qwen2ForCausalLM",
            head_norm=architecture == "Qwen3ForCausalLM",
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    window = config.get("sliding_window")
    unlike = (
        config.get("model_type") != FAMILY.get(str(architecture))
        or config.get("hidden_act", "silu") != "silu"
        or config.get("attention_bias")
        or config.get("mlp_bias")
        or (config.get("quantization_config") and not is_int8(config))
        or (window is not None and config.get("use_sliding_window", True) and window < shape.context_tokens)
        or any(width % LANES for width in (shape.hidden, shape.head_dim, shape.inner))
        or shape.heads % shape.kv_heads
        or shape.heads // shape.kv_heads > GROUP_MOST
    )
    return None if unlike else shape
