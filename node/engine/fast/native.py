"""The compiled forward pass, called from Python: tensors in, logits out."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from nsllm.node.engine.fast.memory import reserve
from nsllm.node.engine.fast.room import BLOCK_TOKENS, Numerics, block_bytes
from nsllm.node.engine.fast.shape import Shape
from nsllm.node.engine.fast.weights import LlamaWeights, PackedLinear, rope_table
from nsllm.node.errors import EngineError

LOGIT_ROWS: Final = 256
"""Rows of logits that there is room for from the beginning; their memory is used as they are first written."""


class _Linear(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("weight", "scale", "bias")),
        *((name, c_int32) for name in ("inputs", "outputs")),
    )


class _Model(Structure):
    _fields_ = (
        *((name, POINTER(_Linear)) for name in ("qkv", "out", "gate_up", "down", "head")),
        *((name, c_void_p) for name in ("norms", "embedding", "cosine", "sine", "query_norm", "key_norm")),
        *((name, c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "inner", "vocabulary")),
        *((name, c_int32) for name in ("int8", "embedding_bf16")),
        ("epsilon", c_float),
    )


class _Batch(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "positions", "sequences", "tables", "wanted")),
        *((name, c_void_p) for name in ("logits", "states", "blocks")),
        *((name, c_int32) for name in ("rows", "wanted_rows", "longest")),
    )


@dataclass(frozen=True, slots=True)
class Run:
    """New tokens of one sequence."""

    token_ids: Sequence[int]
    start: int
    """Position of the first of them."""
    blocks: Sequence[int]
    """Numbers of the sequence's blocks; those of the new tokens are its own."""
    keep: int
    """How many of the last tokens' logits are wanted."""


class NativeModel:
    """Model, keys and values in memory; one call at a time.

    Args:
        library: from `build`.
        shape: sizes of the model.
        weights: kept alive here.
        numerics: what the weights are packed as. They are also what keys and values are kept in.
        blocks: number of blocks of keys and values; memory is used as they are first written.
        threads: that compute.
    """

    def __init__(
        self, library: Path, shape: Shape, weights: LlamaWeights, numerics: Numerics, *, blocks: int, threads: int
    ) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.team_start.restype = c_void_p
        self._shape = shape
        self._weights = weights
        self._blocks = reserve(blocks * block_bytes(shape, numerics)).view(blocks, -1)
        self.logits = _rows(LOGIT_ROWS, shape.vocabulary)
        """(rows, vocabulary) float32: each call writes those that it is asked for from row 0 on. The same memory all
        the time, unless a call asks for more rows than it has."""
        self.states = _rows(LOGIT_ROWS, shape.hidden)
        """(rows, hidden) float32: what the last layer leaves, from which `forward` made the logits of the same row."""
        cosine, sine = rope_table(shape, min(shape.context_tokens, blocks * BLOCK_TOKENS))
        self._kept: list[object] = [cosine, sine]
        self._model = _Model(
            qkv=self._linears(weights.qkv),
            out=self._linears(weights.out),
            gate_up=self._linears(weights.gate_up),
            down=self._linears(weights.down),
            head=self._linears([weights.head]),
            norms=weights.norms.data_ptr(),
            embedding=weights.embedding.data_ptr(),
            cosine=cosine.data_ptr(),
            sine=sine.data_ptr(),
            query_norm=None if weights.query_norm is None else weights.query_norm.data_ptr(),
            key_norm=None if weights.key_norm is None else weights.key_norm.data_ptr(),
            layers=shape.layers,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            inner=shape.inner,
            vocabulary=shape.vocabulary,
            int8=numerics == "int8",
            embedding_bf16=weights.embedding.dtype == torch.bfloat16,
            epsilon=shape.epsilon,
        )
        self._team = c_void_p(self._library.team_start(threads))
        if not self._team:
            raise EngineError(f"cannot start {threads} threads", hint="set engine.threads lower")

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block."""
        self._blocks[target].copy_(self._blocks[source])

    def close(self) -> None:
        """End the threads."""
        self._library.team_stop(self._team)

    def forward(self, runs: Sequence[Run]) -> torch.Tensor:
        """Read the runs' tokens; logits (all that are kept, vocabulary), in the order of the runs.

        The next call writes over them.
        """
        tokens, positions, sequences, tables, wanted = (array("i") for _ in range(5))
        longest = 0
        for run in runs:
            count = len(run.token_ids)
            tokens.extend(run.token_ids)
            positions.extend(range(run.start, run.start + count))
            sequences.extend([len(tables)] * count)
            tables.extend(run.blocks)
            wanted.extend(range(len(tokens) - run.keep, len(tokens)))
            longest = max(longest, run.start + count)
        self._make_room(len(wanted))
        batch = _Batch(
            *(part.buffer_info()[0] for part in (tokens, positions, sequences, tables, wanted)),
            logits=self.logits.data_ptr(),
            states=self.states.data_ptr(),
            blocks=self._blocks.data_ptr(),
            rows=len(tokens),
            wanted_rows=len(wanted),
            longest=longest,
        )
        if self._library.forward(self._team, byref(self._model), byref(batch)):
            raise MemoryError(f"no memory for {len(tokens)} tokens")
        return self.logits[: len(wanted)]

    def logits_of(self, states: torch.Tensor) -> torch.Tensor:
        """Once more the logits (rows, vocabulary) that `forward` made of these rows of `states`.

        The next call writes over them.
        """
        count = len(states)
        self._make_room(count)
        given = states.contiguous()
        pointers = c_void_p(given.data_ptr()), count, c_void_p(self.logits.data_ptr())
        if self._library.logits_of(self._team, byref(self._model), *pointers):
            raise MemoryError(f"no memory for the logits of {count} tokens")
        return self.logits[:count]

    def log_probabilities(self, logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
        """Natural log-probability of each token under its row of logits (tokens, vocabulary)."""
        tokens = torch.tensor(token_ids, dtype=torch.int32)
        results = torch.empty(len(token_ids), dtype=torch.float64)
        pointers = (c_void_p(tensor.data_ptr()) for tensor in (logits, tokens))
        self._library.log_probabilities(
            self._team, *pointers, len(token_ids), self._shape.vocabulary, c_void_p(results.data_ptr())
        )
        values: list[float] = results.tolist()
        return values

    def _make_room(self, rows: int) -> None:
        if rows > len(self.logits):
            self.logits = _rows(rows, self._shape.vocabulary)
            self.states = _rows(rows, self._shape.hidden)

    def _linears(self, layers: Sequence[PackedLinear]) -> ctypes.Array[_Linear]:
        linears = (_Linear * len(layers))(
            *(
                _Linear(
                    weight=layer.weight.data_ptr(),
                    scale=layer.scale.data_ptr(),
                    bias=None if layer.bias is None else layer.bias.data_ptr(),
                    inputs=layer.inputs,
                    outputs=layer.outputs,
                )
                for layer in layers
            )
        )
        self._kept.append(linears)
        return linears


def _rows(rows: int, width: int) -> torch.Tensor:
    return reserve(rows * width * 4).view(torch.float32).view(rows, width)
