"""A BERT sentence encoder (MiniLM) by compiled kernels, where the processor multiplies bfloat16.

Beside torch it spares what a call costs however short its texts are: weights are packed once, and no code is made
anew for each number of tokens.
"""

from __future__ import annotations

import ctypes
from array import array
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_void_p
from pathlib import Path
from typing import Final

import torch

from nsllm.node.engine.fast.encoder_files import BertFiles, BertTokens
from nsllm.node.engine.fast.memory import LINE_BYTES, Arena
from nsllm.node.errors import EngineError

COLS: Final = 48
"""Outputs in a tile; `encode.c`."""
LANES: Final = 16
"""Sizes are multiples of it."""


class _Half(Structure):
    _fields_ = (*((name, c_void_p) for name in ("weight", "bias")), ("inputs", c_int32), ("outputs", c_int32))


class _Encoder(Structure):
    _fields_ = (
        *((name, POINTER(_Half)) for name in ("qkv", "out", "up", "down")),
        *((name, c_void_p) for name in ("norms", "words", "positions")),
        *((name, c_int32) for name in ("layers", "hidden", "heads", "inner")),
        ("epsilon", c_float),
    )


class _Texts(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "starts", "vectors")),
        *((name, c_int32) for name in ("texts", "longest")),
    )


def encodes(library: Path, files: BertFiles) -> bool:
    """Whether the kernels can compute this encoder on this processor."""
    sizes = (files.hidden, files.inner, files.hidden // files.heads)
    return bool(ctypes.CDLL(str(library)).encodes()) and not any(size % LANES for size in sizes)


class NativeEncoder:
    """Mean over the tokens, L2 norm (model card of all-MiniLM-L6-v2).

    A text's vector is the same bits whatever is read beside it.

    Args:
        folder: of the model.
        files: what is in it.
        library: from `build`; `encodes` said yes.
        threads: that compute.
    """

    def __init__(self, folder: Path, files: BertFiles, library: Path, *, threads: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.team_start.restype = c_void_p
        self._hidden = files.hidden
        self._kept: list[object] = []
        """What the kernels point at."""
        self._arena = Arena(_packed_bytes(files))
        layers = [f"encoder.layer.{number}." for number in range(files.layers)]
        names = ["embeddings.LayerNorm"]
        for prefix in layers:
            names += [prefix + "attention.output.LayerNorm", prefix + "output.LayerNorm"]
        words = files.words()
        self._model = _Encoder(
            qkv=self._halves(
                [files.linear(*(f"{at}attention.self.{name}" for name in ("query", "key", "value"))) for at in layers]
            ),
            out=self._halves([files.linear(at + "attention.output.dense") for at in layers]),
            up=self._halves([files.linear(at + "intermediate.dense") for at in layers]),
            down=self._halves([files.linear(at + "output.dense") for at in layers]),
            norms=self._pointer(torch.stack([torch.stack(files.norm(name)) for name in names])),
            words=self._pointer(words),
            positions=self._pointer(files.positions()),
            layers=files.layers,
            hidden=files.hidden,
            heads=files.heads,
            inner=files.inner,
            epsilon=files.epsilon,
        )
        self.read = BertTokens(folder, vocabulary=len(words), most_tokens=files.most_tokens).read
        self._team = c_void_p(self._library.team_start(threads))
        if not self._team:
            raise EngineError(f"cannot start {threads} threads", hint="set engine.threads lower")

    def close(self) -> None:
        """End the threads."""
        self._library.team_stop(self._team)

    def vectors(self, rows: list[list[int]]) -> torch.Tensor:
        """Unit vectors (rows, dimensions) of what is read at once."""
        tokens, starts = array("i"), array("i", [0])
        for row in rows:
            tokens.extend(row)
            starts.append(len(tokens))
        found = torch.empty(len(rows), self._hidden)
        texts = _Texts(
            tokens=tokens.buffer_info()[0],
            starts=starts.buffer_info()[0],
            vectors=found.data_ptr(),
            texts=len(rows),
            longest=max(map(len, rows), default=0),
        )
        if self._library.encode(self._team, byref(self._model), byref(texts)):
            raise MemoryError(f"no memory for {len(tokens)} tokens")
        return found

    def _pointer(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _halves(self, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> ctypes.Array[_Half]:
        halves = (_Half * len(layers))(
            *(
                _Half(
                    weight=self._pointer(self._packed(weight)),
                    bias=self._pointer(bias),
                    inputs=weight.shape[1],
                    outputs=weight.shape[0],
                )
                for weight, bias in layers
            )
        )
        self._kept.append(halves)
        return halves

    def _packed(self, weight: torch.Tensor) -> torch.Tensor:
        """(tiles, inputs / 2, 48, 2) of (outputs, inputs), bfloat16."""
        outputs, inputs = weight.shape
        tiles = -(-outputs // COLS)
        padded = torch.nn.functional.pad(weight, (0, 0, 0, tiles * COLS - outputs))
        pairs = padded.to(torch.bfloat16).view(tiles, COLS, inputs // 2, 2).transpose(1, 2)
        return self._arena.keep(pairs)


def _packed_bytes(files: BertFiles) -> int:
    """Of all linear layers; a little more than enough."""
    hidden, inner = files.hidden, files.inner
    pairs = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    return files.layers * sum(2 * inputs * (outputs + COLS) + LINE_BYTES for inputs, outputs in pairs)
