"""The fast path as a backend: compiled kernels, paged keys and values, known beginnings read only once.

Imported in the worker process only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from nsllm.node.engine.backend import Cache, Encoder, Read
from nsllm.node.engine.fast.blocks import BlockPool, Lease
from nsllm.node.engine.fast.chat import ChatText
from nsllm.node.engine.fast.encoder import BertEncoder, runs
from nsllm.node.engine.fast.memory import trim
from nsllm.node.engine.fast.native import NativeModel, Run
from nsllm.node.engine.fast.packed import Place, keep_packed
from nsllm.node.engine.fast.room import BLOCK_TOKENS, SIDE_CONTEXTS, Numerics, block_count, context_blocks
from nsllm.node.engine.fast.select import NativeChooser
from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.fast.weights import load_weights
from nsllm.node.engine.guide import GuideBook
from nsllm.node.engine.sampler import Chooser
from nsllm.node.errors import ConfigError


class FastBackend:
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
        shape = read_shape(json.loads((text / "config.json").read_bytes()))
        if shape is None:
            raise ConfigError(f"the fast path does not run {text}", hint='set engine.backend to "auto"')
        self._chat = ChatText(text)
        if self._chat.last_token_id >= shape.vocabulary:
            raise ConfigError(
                f"{text}: the tokenizer's ids go to {self._chat.last_token_id}, the model knows {shape.vocabulary}"
            )
        blocks = block_count(shape, numerics, cache_mb)
        make = partial(load_weights, text, shape, numerics)
        weights = make() if packed is None else keep_packed(make, packed, library)
        trim()
        self._model = NativeModel(library, shape, weights, numerics, blocks=blocks, threads=threads)
        self.pool = BlockPool(
            blocks, BLOCK_TOKENS, spare=SIDE_CONTEXTS * context_blocks(shape), copy=self._model.copy_block
        )
        self.embed = _encoder(encoder).embed
        self.chooser: Chooser = NativeChooser(library, shape.vocabulary)
        self.context_tokens = shape.context_tokens
        self.vocabulary = shape.vocabulary
        self.end_token_ids = self._chat.end_token_ids
        self.longest_token_chars = self._chat.longest_token_chars
        self.chat_tokens = self._chat.chat_tokens
        self.tokens = self._chat.tokens
        self.text = self._chat.text
        self.text_tokens = self._chat.text_tokens
        self.spelling = self._chat.spelling
        self.guides = GuideBook(
            token_bytes=self.spelling.token_bytes,
            encode=self.tokens,
            vocabulary=shape.vocabulary,
            special_token_ids=self._chat.special_token_ids,
            end_token_ids=self.end_token_ids,
        )

    def open(self, token_ids: Sequence[int], most: int, *, side: bool) -> Lease | None:
        """A sequence, with what is known of its beginning; None if there is no room now."""
        return self.pool.open(token_ids, most, side=side)

    def catch_up(self, cache: Cache, token_ids: Sequence[int]) -> None:
        """Take over what other sequences have read meanwhile of the beginning of this one."""
        assert isinstance(cache, Lease)
        self.pool.catch_up(cache, token_ids)

    def room(self) -> tuple[int, int]:
        """(held, all) blocks."""
        return self.pool.used, self.pool.count

    def close(self, cache: Cache) -> None:
        """Give the blocks back; what they hold may be found again."""
        assert isinstance(cache, Lease)
        self.pool.close(cache)

    def forward(self, reads: Sequence[Read]) -> list[torch.Tensor]:
        """Read the tokens of all sequences at once; logits (keep, vocabulary) of each."""
        return list(torch.split(self.read(reads), [read.keep for read in reads]))

    def read(self, reads: Sequence[Read]) -> torch.Tensor:
        """The same as one tensor: the memory that the next call writes to."""
        runs = []
        for read in reads:
            assert isinstance(read.cache, Lease)
            self.pool.grow(read.cache, len(read.token_ids))
            runs.append(Run(read.token_ids, read.cache.read, read.cache.blocks, read.keep))
        logits = self._model.forward(runs)
        for read in reads:
            assert isinstance(read.cache, Lease)
            self.pool.written(read.cache, read.token_ids)
        return logits

    def log_probabilities(self, logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
        """Natural log-probability of each token under its row of `logits` (tokens, vocabulary)."""
        return self._model.log_probabilities(logits, token_ids) if token_ids else []


def _encoder(folder: Path) -> Encoder:
    if runs(json.loads((folder / "config.json").read_bytes())) and (folder / "tokenizer.json").is_file():
        return BertEncoder(folder)
    from nsllm.node.engine.general import TransformersEncoder  # takes seconds to import

    return TransformersEncoder(folder)
