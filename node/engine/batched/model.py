"""The forward pass in torch: rows of all sequences side by side, keys and values in paged blocks on the device.

Numbers are those that the model is stored in. A matrix product rounds according to how many rows it has, so a row's
last bits may depend on its neighbours: equal to what transformers gives but for rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from nsllm.node.engine.batched.groups import Group, grouped
from nsllm.node.engine.fast.native import Run
from nsllm.node.engine.fast.room import BLOCK_TOKENS
from nsllm.node.engine.fast.shape import Shape
from nsllm.node.engine.fast.weights import Source, rope_table


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of a layer, (outputs, inputs) each; projections of one input are one matrix."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    """(head_dim,)"""
    key_norm: torch.Tensor | None
    out: torch.Tensor
    inner_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class TorchLlama:
    """Model, keys and values in the memory of a device; one call at a time.

    Args:
        folder: of the model, safetensors.
        shape: its sizes.
        dtype: of weights, keys and values.
        device: as torch calls it.
        blocks: number of blocks of keys and values; their memory is taken at once.

    Raises:
        torch.OutOfMemoryError: the device has no room for them.
    """

    def __init__(self, folder: Path, shape: Shape, dtype: torch.dtype, device: str, *, blocks: int) -> None:
        self._shape = shape
        self._device = torch.device(device)
        with ExitStack() as stack:
            source = _Placed(Source(folder, stack), dtype, self._device)
            self._embedding = source.read("model.embed_tokens.weight")
            self._layers = [_layer(source, shape, f"model.layers.{i}.") for i in range(shape.layers)]
            self._norm = source.read("model.norm.weight")
            self._head = self._embedding if shape.tied else source.read("lm_head.weight")
        self._cosine, self._sine = (table.to(self._device) for table in rope_table(shape, shape.context_tokens))
        size = (2, blocks, BLOCK_TOKENS, shape.kv_heads, shape.head_dim)
        self._kept = [torch.zeros(size, dtype=dtype, device=self._device) for _ in self._layers]
        """Keys and values of each layer."""

    @torch.inference_mode()
    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values in all layers."""
        for kept in self._kept:
            kept[:, target] = kept[:, source]

    @torch.inference_mode()
    def forward(self, runs: Sequence[Run]) -> torch.Tensor:
        """Read the new tokens of all sequences; logits (all that are kept, vocabulary), float32 on the CPU."""
        ids, positions, slots, wanted = (
            torch.tensor(row, dtype=torch.long, device=self._device) for row in _rows(runs)
        )
        groups = grouped(runs, self._device)
        turn = self._cosine[positions][:, None], self._sine[positions][:, None]  # (rows, 1, head_dim / 2)
        hidden = self._embedding[ids]
        for layer, kept in zip(self._layers, self._kept, strict=True):
            hidden = hidden + self._attention(layer, kept.flatten(1, 2), hidden, turn, slots, groups)
            gate, up = linear(self._normed(hidden, layer.inner_norm), layer.gate_up).chunk(2, 1)
            hidden = hidden + linear(silu(gate) * up, layer.down)
        return linear(self._normed(hidden[wanted], self._norm), self._head).float().cpu()

    def log_probabilities(self, logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
        """Natural log-probability of each token under its row of `logits` (tokens, vocabulary)."""
        wanted = torch.tensor(token_ids, dtype=torch.long).unsqueeze(1)
        values: list[float] = (logits.gather(1, wanted).squeeze(1) - logits.logsumexp(1)).tolist()
        return values

    def _attention(
        self,
        layer: Layer,
        kept: torch.Tensor,
        hidden: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        groups: Sequence[Group],
    ) -> torch.Tensor:
        """Of one layer; puts the rows' keys and values into `kept` (2, slots, kv_heads, head_dim)."""
        shape = self._shape
        joined = linear(self._normed(hidden, layer.input_norm), layer.qkv, layer.qkv_bias)
        heads = joined.view(len(hidden), -1, shape.head_dim)
        # (rows, heads, head_dim) each
        queries, keys, values = torch.split(heads, [shape.heads, shape.kv_heads, shape.kv_heads], 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = self._normed(queries, layer.query_norm), self._normed(keys, layer.key_norm)
        queries = _turned(queries, *turn)
        kept[0, slots], kept[1, slots] = _turned(keys, *turn), values
        mixed = torch.empty_like(queries)
        for group in groups:
            mixed[group.rows] = _attend(queries, kept, group)
        return linear(mixed.flatten(1), layer.out)

    def _normed(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(rows, weight.shape, weight, self._shape.epsilon)


class _Placed:
    """Tensors by name, on the device in the numbers that are computed in."""

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self._source, self._dtype, self._device = source, dtype, device

    def read(self, *names: str) -> torch.Tensor:
        """One tensor, or several below each other."""
        return torch.cat([self._source.as_stored(name).to(self._device, self._dtype) for name in names])


def _layer(source: _Placed, shape: Shape, prefix: str) -> Layer:
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    return Layer(
        input_norm=source.read(prefix + "input_layernorm.weight"),
        qkv=source.read(*(f"{attention}{name}_proj.weight" for name in "qkv")),
        qkv_bias=source.read(*(f"{attention}{name}_proj.bias" for name in "qkv")) if shape.qkv_bias else None,
        query_norm=source.read(attention + "q_norm.weight") if shape.head_norm else None,
        key_norm=source.read(attention + "k_norm.weight") if shape.head_norm else None,
        out=source.read(attention + "o_proj.weight"),
        inner_norm=source.read(prefix + "post_attention_layernorm.weight"),
        gate_up=source.read(*(f"{mlp}{name}_proj.weight" for name in ("gate", "up"))),
        down=source.read(mlp + "down_proj.weight"),
    )


def _rows(runs: Sequence[Run]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Of all new tokens: ids, positions, slots of their keys and values; and which rows' logits are wanted."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    wanted: list[int] = []
    for run in runs:
        ids += run.token_ids
        wanted += range(len(ids) - run.keep, len(ids))
        mine = range(run.start, run.start + len(run.token_ids))
        positions += mine
        slots += [run.blocks[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS for at in mine]
    return ids, positions, slots, wanted


def _turned(rows: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions, computed in float32: the two halves of a head (rows, heads, head_dim) are pairs."""
    first, second = rows.float().chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(rows.dtype)


def _attend(queries: torch.Tensor, kept: torch.Tensor, group: Group) -> torch.Tensor:
    """What the group's rows see, (rows of the group, heads, head_dim).

    Query heads that share a key head stand below each other as rows of it, so that keys and values are not repeated.
    """
    kv_heads, head_dim = kept.shape[2:]
    asked = queries[group.queries]  # (sequences, tokens, heads, head_dim)
    sequences, tokens, heads, _ = asked.shape
    share = heads // kv_heads
    asked = asked.view(sequences, tokens, kv_heads, share, head_dim).permute(0, 2, 3, 1, 4)
    keys, values = kept[:, group.slots].transpose(2, 3)  # (sequences, kv_heads, length, head_dim) each
    seen = scaled_dot_product_attention(
        asked.reshape(sequences, kv_heads, share * tokens, head_dim),
        keys,
        values,
        attn_mask=group.mask.repeat(1, 1, share, 1),
    )
    seen = seen.view(sequences, kv_heads, share, tokens, head_dim).permute(0, 3, 1, 2, 4)
    return seen.reshape(sequences * tokens, heads, head_dim)[group.real]
