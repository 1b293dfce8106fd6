"""A BERT sentence encoder (MiniLM), in torch, straight from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from nsllm.node.engine.backend import given_tokens
from nsllm.node.engine.card import ENCODER_TOKENS
from nsllm.node.engine.port import Readable

BFLOAT16: Final = ("avx512_bf16", "amx_bf16")
"""Processors that multiply bfloat16, as torch calls what they can."""
MOST_CHARS: Final = 16_384
"""Characters of a text that the tokenizer looks at: 64 for each token that is read."""


def quick_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it, at half the time; else float32.

    A text's two vectors have a cosine of at least 0.9999, and cosines between texts move by 0.0025 at most, 0.0004 on
    average (134 texts, measured). Records hold signed bytes, which are coarser: so an encoder has one name in either.
    """
    capabilities = torch.cpu.get_capabilities()
    bfloat16 = any(capabilities.get(name) for name in BFLOAT16)
    return torch.bfloat16 if bfloat16 else torch.float32


def runs(config: dict[str, Any]) -> bool:
    """Whether a config.json describes what `BertEncoder` computes."""
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
    )


class BertEncoder:
    """Mean over the tokens, L2 norm (model card of all-MiniLM-L6-v2).

    Args:
        folder: of the model.
        dtype: what linear layers and attention compute in; None: `quick_dtype`. What is added up and the norms are
            float32.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        weights = _Weights(folder, float(config.get("layer_norm_eps", 1e-12)), dtype or quick_dtype())
        self._heads: int = config["num_attention_heads"]
        self._words = weights.table("word")
        self._positions = weights.table("position") + weights.table("token_type")[0]
        self._embedding_norm = weights.norm("embeddings.LayerNorm")
        self._layers = [weights.layer(number) for number in range(config["num_hidden_layers"])]
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._most_tokens = min(ENCODER_TOKENS, int(config["max_position_embeddings"]))
        self._vocabulary = len(self._words)
        self._tokenizer.no_padding()

    def read(self, texts: Sequence[Readable], most_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each text."""
        most = min(self._most_tokens, most_tokens or self._most_tokens)
        self._tokenizer.enable_truncation(most)
        return [
            self._tokenizer.encode(str(text[:MOST_CHARS])).ids
            if isinstance(text, str)
            else given_tokens(text, self._vocabulary)[:most]
            for text in texts
        ]

    @torch.inference_mode()
    def vectors(self, rows: list[list[int]]) -> torch.Tensor:
        """Unit vectors (rows, dimensions) of what is read at once; only attention sees padding."""
        lengths = torch.tensor([len(row) for row in rows])
        width = max(1, int(lengths.max()))
        mask = torch.arange(width)[None] < lengths[:, None]
        places = mask.view(-1).nonzero()[:, 0]
        x = self._embed_tokens(torch.tensor([token for row in rows for token in row], dtype=torch.long), places % width)
        for layer in self._layers:
            x = self._read_layer(layer, x, mask, places)
        sums = x.new_zeros(len(rows), x.shape[1]).index_add_(0, places // width, x)
        return normalize(sums / lengths.clamp(min=1)[:, None], dim=1)

    def _embed_tokens(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._embedding_norm.of(embedding(ids, self._words) + embedding(positions, self._positions))

    def _read_layer(self, layer: _Layer, x: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Of x (tokens, hidden), float32; mask (texts, width), in which the tokens stand at `places`."""
        texts, width = mask.shape
        heads = layer.qkv.of(x)
        padded = heads.new_zeros(texts * width, heads.shape[1]).index_copy_(0, places, heads)
        q, k, v = padded.view(texts, width, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        mixed = mixed.transpose(1, 2).reshape(texts * width, -1)[places]
        x = layer.attention_norm.of(layer.out.of(mixed) + x)
        return layer.norm.of(layer.down.of(gelu(layer.up.of(x))) + x)


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: torch.Tensor
    bias: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """In the weight's numbers, which float32 is widened from by what comes next."""
        return linear(x.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def of(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
        return normed


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Linear
    out: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    norm: _Norm


class _Weights:
    """A BERT's tensors by name, as the encoder takes them."""

    def __init__(self, folder: Path, epsilon: float, dtype: torch.dtype) -> None:
        stored = load_file(folder / "model.safetensors")
        self._stored: dict[str, torch.Tensor] = {
            name.removeprefix("bert."): tensor.float() for name, tensor in stored.items()
        }
        self._epsilon = epsilon
        self._dtype = dtype

    def table(self, name: str) -> torch.Tensor:
        """Of the embeddings."""
        return self._stored[f"embeddings.{name}_embeddings.weight"]

    def norm(self, name: str) -> _Norm:
        return _Norm(self._stored[name + ".weight"], self._stored[name + ".bias"], self._epsilon)

    def layer(self, number: int) -> _Layer:
        prefix = f"encoder.layer.{number}."
        return _Layer(
            qkv=self._linear(*(f"{prefix}attention.self.{name}" for name in ("query", "key", "value"))),
            out=self._linear(prefix + "attention.output.dense"),
            attention_norm=self.norm(prefix + "attention.output.LayerNorm"),
            up=self._linear(prefix + "intermediate.dense"),
            down=self._linear(prefix + "output.dense"),
            norm=self.norm(prefix + "output.LayerNorm"),
        )

    def _linear(self, *names: str) -> _Linear:
        """One layer of several that read the same."""
        weight, bias = (
            torch.cat([self._stored[name + kind] for name in names]).to(self._dtype) for kind in (".weight", ".bias")
        )
        return _Linear(weight, bias)
