"""What the paths over paged keys and values share: blocks, known beginnings read only once, tokenizer and encoder.

Imported in the worker process only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from nsllm.node.engine.backend import Cache, Encoder, Read
from nsllm.node.engine.fast.blocks import BlockPool, Lease
from nsllm.node.engine.fast.chat import ChatText
from nsllm.node.engine.fast.native import Run
from nsllm.node.engine.fast.room import BLOCK_TOKENS, SIDE_CONTEXTS, context_blocks
from nsllm.node.engine.fast.shape import Shape, read_shape
from nsllm.node.engine.guide import GuideBook
from nsllm.node.engine.sampler import Chooser
from nsllm.node.errors import ConfigError


class PagedModel(Protocol):
    """A model with its blocks of keys and values."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's contents."""
        ...

    def forward(self, runs: Sequence[Run]) -> torch.Tensor:
        """Read the new tokens of all sequences; logits (all that are kept, vocabulary), float32 on the CPU."""
        ...

    def log_probabilities(self, logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
        """Natural log-probability of each token under its row of `logits` (tokens, vocabulary)."""
        ...


class PagedBackend:
    """A model of the Llama family and an encoder.

    Args:
        shape: sizes of the model.
        chat: its tokenizer.
        model: the model.
        blocks: of keys and values, that the model has.
        chooser: chooses tokens.
        encoder: reads texts.
    """

    def __init__(
        self, shape: Shape, chat: ChatText, model: PagedModel, blocks: int, chooser: Chooser, encoder: Encoder
    ) -> None:
        self._model = model
        self._chat = chat
        self.joins = False
        self.pool = BlockPool(blocks, BLOCK_TOKENS, spare=SIDE_CONTEXTS * context_blocks(shape), copy=model.copy_block)
        self.encoder = encoder
        self.chooser = chooser
        self.context_tokens = shape.context_tokens
        self.vocabulary = shape.vocabulary
        self.end_token_ids = chat.end_token_ids
        self.longest_token_chars = chat.longest_token_chars
        self.chat_tokens = chat.chat_tokens
        self.tokens = chat.tokens
        self.text = chat.text
        self.text_tokens = chat.text_tokens
        self.spelling = chat.spelling
        self.guides = GuideBook(
            token_bytes=self.spelling.token_bytes,
            encode=self.tokens,
            vocabulary=shape.vocabulary,
            special_token_ids=chat.special_token_ids,
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


def read_text(folder: Path) -> tuple[Shape, ChatText]:
    """Sizes and tokenizer of the model in `folder`.

    Raises:
        ConfigError: it is not of the Llama family, or the files do not fit each other.
    """
    shape = read_shape(json.loads((folder / "config.json").read_bytes()))
    if shape is None:
        raise ConfigError(f"{folder} is not of the Llama family", hint='set engine.backend to "auto"')
    chat = ChatText(folder)
    if chat.last_token_id >= shape.vocabulary:
        raise ConfigError(
            f"{folder}: the tokenizer's ids go to {chat.last_token_id}, the model knows {shape.vocabulary}"
        )
    return shape, chat
