"""The batched path as a backend. Imported in the worker process only."""

from __future__ import annotations

from pathlib import Path

import torch

from nsllm.node.engine.batched.model import TorchLlama
from nsllm.node.engine.encoders import open_encoder
from nsllm.node.engine.fast.room import Kept, block_count
from nsllm.node.engine.fast.select import NativeChooser
from nsllm.node.engine.paged import PagedBackend, read_text
from nsllm.node.engine.sampler import Chooser, PlainChooser
from nsllm.node.errors import ConfigError


class BatchedBackend(PagedBackend):
    """A model of the Llama family on a torch device, and an encoder on the CPU.

    Args:
        text: folder of the model.
        encoder: folder of the encoder.
        dtype: what the model is stored in and computes in.
        device: as torch calls it.
        library: compiled kernels that choose tokens; None: numpy does.
        cache_mb: memory for keys and values; more if one generation and one judgement at full context need it.

    Raises:
        ConfigError: the files do not fit each other, or the device has no room for them.
    """

    def __init__(
        self, text: Path, encoder: Path, dtype: Kept, device: str, *, library: Path | None, cache_mb: int
    ) -> None:
        shape, chat = read_text(text)
        blocks = block_count(shape, dtype, cache_mb)
        try:
            model = TorchLlama(text, shape, getattr(torch, dtype), device, blocks=blocks)
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"{device} has no room for {text.name} and keys and values of two contexts of"
                f" {shape.context_tokens} tokens",
                hint='lower max_position_embeddings in its config.json, or set engine.backend to "general"',
            ) from None
        chooser: Chooser = PlainChooser() if library is None else NativeChooser(library, shape.vocabulary)
        super().__init__(shape, chat, model, blocks, chooser, open_encoder(encoder))
