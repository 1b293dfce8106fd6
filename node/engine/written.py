"""Answers that this worker wrote of late, as the model's last layer left them. Imported in the worker process only.

Whoever writes an answer judges it, too. What all layers but the vocabulary's made of its tokens is kept, two kilobytes
a token of SmolLM2-135M, so that the answer need not be read once more: logits are the same bits whenever they are made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import torch

from nsllm.node.engine.backend import Retelling
from nsllm.node.engine.generation import Generation

MOST_TOKENS: Final = 512
"""Of an answer that is kept; a longer one is read again."""
MOST_BYTES: Final = 16 << 20
"""Of all that are kept: some 300 short answers of SmolLM2-135M."""

Key = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of prompt and answer."""


class Written:
    """What is remembered of answers.

    Args:
        backend: whose generations these are.
    """

    def __init__(self, backend: Retelling) -> None:
        self._backend = backend
        self._kept: OrderedDict[Key, torch.Tensor] = OrderedDict()
        """The latest last."""
        self._bytes = 0

    def note(self, generations: Sequence[Generation]) -> None:
        """What the next tokens are chosen from, right after a pass whose first kept rows are these generations'."""
        rows = self._backend.states()[: len(generations)].clone()
        for one, row in zip(generations, rows, strict=True):
            if len(one.tokens) == len(one.states) < MOST_TOKENS:
                one.states.append(row)

    def keep(self, one: Generation) -> None:
        """Remember an answer that has ended, if all its tokens were noted."""
        if len(one.states) != len(one.tokens):
            return
        key = tuple(one.prompt), tuple(one.tokens)
        self._forget(key)
        self._kept[key] = states = torch.stack(one.states)
        self._bytes += states.nbytes
        while self._bytes > MOST_BYTES:
            self._forget(next(iter(self._kept)))

    def find(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor | None:
        """What each token of exactly this answer to this prompt was chosen from: (tokens, width); None: not known."""
        return self._kept.get((tuple(prompt), tuple(answer)))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (tokens, vocabulary) of some of what was found, until the model reads or tells something else."""
        return self._backend.logits_of(states)

    def _forget(self, key: Key) -> None:
        states = self._kept.pop(key, None)
        if states is not None:
            self._bytes -= states.nbytes
