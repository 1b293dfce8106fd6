"""The fast path as a backend: compiled kernels over paged keys and values. Imported in the worker process only."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nsllm.node.engine.encoders import open_encoder
from nsllm.node.engine.fast.memory import trim
from nsllm.node.engine.fast.native import NativeModel
from nsllm.node.engine.fast.packed import Place, keep_packed
from nsllm.node.engine.fast.room import Numerics, block_count
from nsllm.node.engine.fast.select import NativeChooser
from nsllm.node.engine.fast.weights import load_weights
from nsllm.node.engine.paged import PagedBackend, read_text

if TYPE_CHECKING:
    import torch


class FastBackend(PagedBackend):
    """A model of the Llama family and an encoder.

    Args:
        text: folder of the model.
        encoder: folder of the encoder.
        library: the compiled kernels, from `build`.
        numerics: what the linear layers compute in.
        threads: that compute.
        cache_mb: memory for keys and values; more if one generation and one judgement at full context need it.
        packed: where the packed weights stand, or are put for the next worker; None: only in memory.

    Raises:
        ConfigError: the files do not fit each other.
    """

    def __init__(
        self,
        text: Path,
        encoder: Path,
        library: Path,
        numerics: Numerics,
        *,
        threads: int,
        cache_mb: int,
        packed: Place | None = None,
    ) -> None:
        shape, chat = read_text(text)
        blocks = block_count(shape, numerics, cache_mb)
        make = partial(load_weights, text, shape, numerics)
        weights = make() if packed is None else keep_packed(make, packed, library)
        trim()
        model = NativeModel(library, shape, weights, numerics, blocks=blocks, threads=threads)
        reader = open_encoder(encoder, library, threads=threads)
        super().__init__(shape, chat, model, blocks, NativeChooser(library, shape.vocabulary), reader)
        self.joins = True
        self._native = model

    def states(self) -> torch.Tensor:
        """What the last layer left of the tokens that the last pass kept: (at least these, width)."""
        return self._native.states

    def logits_of(self, states: torch.Tensor) -> torch.Tensor:
        """The logits (rows, vocabulary) that were made of these rows of `states`, until the next call."""
        return self._native.logits_of(states)
