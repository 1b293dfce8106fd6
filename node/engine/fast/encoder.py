"""A BERT sentence encoder (MiniLM), in torch, straight from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from nsllm.node.engine.fast.encoder_files import BertFiles, BertTokens

BFLOAT16: Final = ("avx512_bf16", "amx_bf16")
"""Processors that multiply bfloat16, as torch calls what they can."""


def quick_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it, at half the time; else float32.

    A text's two vectors have a cosine of at least 0.9999, and cosines between texts move by 0.0025 at most, 0.0004 on
    average (134 texts, measured). Records hold signed bytes, which are coarser: so an encoder has one name in either.
    """
    capabilities = torch.cpu.get_capabilities()
    bfloat16 = any(capabilities.get(name) for name in BFLOAT16)
    return torch.bfloat16 if bfloat16 else torch.float32


class BertEncoder:
    """Mean over the tokens, L2 norm (model card of all-MiniLM-L6-v2).

    Args:
        folder: of the model.
        dtype: what linear layers and attention compute in; None: `quick_dtype`. What is added up and the norms are
            float32.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        files = BertFiles(folder)
        self._heads = files.heads
        self._words = files.words()
        self._positions = files.positions()
        self._embedding_norm = _Norm(*files.norm("embeddings.LayerNorm"), files.epsilon)
        self._layers = [_layer(files, number, dtype or quick_dtype()) for number in range(files.layers)]
        self.read = BertTokens(folder, vocabulary=len(self._words), most_tokens=files.most_tokens).read

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


def _layer(files: BertFiles, number: int, dtype: torch.dtype) -> _Layer:
    prefix = f"encoder.layer.{number}."

    def cast(*names: str) -> _Linear:
        weight, bias = files.linear(*(prefix + name for name in names))
        return _Linear(weight.to(dtype), bias.to(dtype))

    def norm(name: str) -> _Norm:
        return _Norm(*files.norm(prefix + name), files.epsilon)

    return _Layer(
        qkv=cast(*(f"attention.self.{name}" for name in ("query", "key", "value"))),
        out=cast("attention.output.dense"),
        attention_norm=norm("attention.output.LayerNorm"),
        up=cast("intermediate.dense"),
        down=cast("output.dense"),
        norm=norm("output.LayerNorm"),
    )
