"""Weights as the kernels read them: projections of one input fused, quantized, packed in tiles."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from nsllm.node.engine.fast.memory import LINE_BYTES, Arena
from nsllm.node.engine.fast.room import Numerics
from nsllm.node.engine.fast.shape import Shape

COLS: Final = 48
"""Outputs in a tile; `linear.h`."""
SHIFT: Final = 128
"""Weights are unsigned bytes around it."""
INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """One linear layer, (inputs, outputs), packed; owns what the kernels point at."""

    weight: torch.Tensor
    """uint8 around 128 (tiles, inputs / 4, 48, 4), or float32 (tiles, inputs, 48)."""
    scale: torch.Tensor
    """(tiles * 48,), int8 only."""
    bias: torch.Tensor | None
    """(tiles * 48,)."""
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """All of a model."""

    embedding: torch.Tensor
    """(vocabulary, hidden), bfloat16 or float32."""
    qkv: tuple[PackedLinear, ...]
    out: tuple[PackedLinear, ...]
    gate_up: tuple[PackedLinear, ...]
    down: tuple[PackedLinear, ...]
    head: PackedLinear
    norms: torch.Tensor
    """(2 * layers + 1, hidden), in the order of their use. They are not folded into the layers after them: what a norm
    makes small would then coarsen the scale of its group (divergence from bfloat16 0.0185 against 0.0125, measured)."""
    query_norm: torch.Tensor | None
    """(layers, head_dim)."""
    key_norm: torch.Tensor | None


def pack(arena: Arena, weight: torch.Tensor, numerics: Numerics, bias: torch.Tensor | None = None) -> PackedLinear:
    """Pack `weight` (outputs, inputs) float32 into `arena`.

    int8 has one scale an output, the largest magnitude over 127.
    """
    outputs, inputs = weight.shape
    tiles = -(-outputs // COLS)
    more = tiles * COLS - outputs
    padded = torch.nn.functional.pad(weight, (0, 0, 0, more)).view(tiles, COLS, inputs)
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (0, more)).contiguous()
    if numerics == "float32":
        return PackedLinear(arena.keep(padded.transpose(1, 2)), torch.empty(0), bias, inputs, outputs)
    scale = padded.abs().amax(2) / 127
    whole = (padded / scale.clamp(min=1e-30)[:, :, None]).round_() + SHIFT
    packed = arena.keep(whole.to(torch.uint8).view(tiles, COLS, inputs // 4, 4).transpose(1, 2))
    return PackedLinear(packed, scale.view(-1), bias, inputs, outputs)


def load_weights(folder: Path, shape: Shape, numerics: Numerics) -> LlamaWeights:
    """Read a folder's safetensors, one layer in memory at a time."""
    with ExitStack() as stack:
        source = Source(folder, stack)
        arena = Arena(_packed_bytes(shape, numerics))
        packed = partial(pack, arena, numerics=numerics)
        qkv, out, gate_up, down, norms, query_norms, key_norms = [], [], [], [], [], [], []
        for prefix in (f"model.layers.{i}." for i in range(shape.layers)):
            norms += [source.read(f"{prefix}{name}_layernorm.weight") for name in ("input", "post_attention")]
            attention, mlp = prefix + "self_attn.", prefix + "mlp."
            bias = None
            if shape.qkv_bias:
                bias = torch.cat([source.read(f"{attention}{name}_proj.bias") for name in "qkv"]).contiguous()
            joined = torch.cat([source.read(f"{attention}{name}_proj.weight") for name in "qkv"])
            qkv.append(packed(joined, bias=bias))
            out.append(packed(source.read(attention + "o_proj.weight")))
            joined = torch.cat([source.read(f"{mlp}{name}_proj.weight") for name in ("gate", "up")])
            gate_up.append(packed(joined))
            down.append(packed(source.read(mlp + "down_proj.weight")))
            if shape.head_norm:
                query_norms.append(source.read(attention + "q_norm.weight"))
                key_norms.append(source.read(attention + "k_norm.weight"))
        head = source.read("model.embed_tokens.weight" if shape.tied else "lm_head.weight")
        return LlamaWeights(
            embedding=arena.keep(source.as_stored("model.embed_tokens.weight")),
            qkv=tuple(qkv),
            out=tuple(out),
            gate_up=tuple(gate_up),
            down=tuple(down),
            head=packed(head),
            norms=torch.stack([*norms, source.read("model.norm.weight")]),
            query_norm=torch.stack(query_norms) if query_norms else None,
            key_norm=torch.stack(key_norms) if key_norms else None,
        )


def rope_table(shape: Shape, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, head_dim / 2), as transformers computes them: angles in float32."""
    angles = torch.arange(positions).float()[:, None] * _turns(shape)[None]
    return angles.double().cos().float().contiguous(), angles.double().sin().float().contiguous()


def _turns(shape: Shape) -> torch.Tensor:
    """(head_dim / 2,) angles of one position, operation by operation as in transformers' `modeling_rope_utils`."""
    rope = shape.rope
    turns = 1.0 / rope.theta ** (torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim)
    slow = turns / rope.factor
    if rope.fade is None:
        return slow
    low, high, trained_tokens = rope.fade.low, rope.fade.high, rope.fade.trained_tokens
    lengths = 2 * math.pi / turns
    kept = (trained_tokens / lengths - low) / (high - low)
    between = (1 - kept) * turns / rope.factor + kept * turns
    fast = torch.where(lengths < trained_tokens / high, turns, between)
    return torch.where(lengths > trained_tokens / low, slow, fast)


def _packed_bytes(shape: Shape, numerics: Numerics) -> int:
    """Of all linear layers and of the embedding; a little more than enough."""
    width = shape.heads * shape.head_dim
    both = 2 * shape.kv_heads * shape.head_dim
    pairs = [(shape.hidden, width + both), (width, shape.hidden), (shape.hidden, 2 * shape.inner)]
    pairs = [*pairs, (shape.inner, shape.hidden)] * shape.layers + [(shape.hidden, shape.vocabulary)]
    number_bytes = 1 if numerics == "int8" else 4
    embedding_bytes = shape.vocabulary * shape.hidden * 4
    return embedding_bytes + sum((outputs + COLS) * inputs * number_bytes + LINE_BYTES for inputs, outputs in pairs)


class Source:
    """Tensors by name, out of one file or several."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files = {
            name: handle
            for handle in self._open(folder, stack)
            for name in handle.keys()  # noqa: SIM118 - no mapping
        }

    @staticmethod
    def _open(folder: Path, stack: ExitStack) -> Iterator[Any]:  # safetensors has no types
        paths = sorted(folder.glob("*.safetensors"))
        if (folder / INDEX).is_file():
            names = json.loads((folder / INDEX).read_bytes())["weight_map"].values()
            paths = [folder / Path(name).name for name in sorted(set(names))]
        for path in paths:
            yield stack.enter_context(safe_open(path, framework="pt"))

    def as_stored(self, name: str) -> torch.Tensor:
        """In bfloat16 or float32; what is stored in others comes in float32."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor if tensor.dtype in {torch.bfloat16, torch.float32} else tensor.float()

    def read(self, name: str) -> torch.Tensor:
        """In float32."""
        scale = f"{name}_scale"
        if scale in self._files:  # whole numbers (outputs, inputs) and (outputs, 1): packing finds the very same ones
            return self.as_stored(name) * self.as_stored(scale).float()
        return self.as_stored(name).float()
