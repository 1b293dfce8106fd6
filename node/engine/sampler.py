"""Choosing the next token: the sampling parameters, applied in the order of transformers and vLLM."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Final

import torch

from nsllm.record import Sampling

MICRO: Final = 1_000_000
MARGIN: Final = 12.0
"""Tokens within e^-12 of the most likely one are looked at first for top-p; the whole vocabulary only if they do not
hold enough probability. Sorting 49,152 tokens takes longer than a model of 135 million parameters."""


class Sampler:
    """One generation's choices: a function of parameters, seed and logits, whoever else is generating.

    Order: repetition penalty, temperature, top-k, top-p. A choice is one draw u of Mersenne Twister seeded with the
    64-bit seed (`random.Random`, whose `random()` is the same on every platform and Python version), looked up in the
    cumulative distribution of the candidates, most likely first (in order of token id if neither top-k nor top-p
    limits them).

    Args:
        sampling: every field set but `max_tokens` and `stop`, which are not used here.
        prompt_token_ids: the repetition penalty counts them, as transformers does.
    """

    def __init__(self, sampling: Sampling, prompt_token_ids: Iterable[int]) -> None:
        self._temperature = (sampling.temperature_micro or 0) / MICRO
        self._top_p = MICRO if sampling.top_p_micro is None else sampling.top_p_micro
        self._top_k = sampling.top_k or 0
        penalty = sampling.repetition_penalty_micro
        self._penalty = 1.0 if penalty is None or penalty == 0 else penalty / MICRO
        self._random = random.Random((sampling.seed or 0) % 2**64)  # noqa: S311 - sampling is no secret
        self._seen = dict.fromkeys(prompt_token_ids)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token. `logits`: (vocabulary,) float32."""
        if self._penalty != 1.0:
            seen = torch.tensor([token for token in self._seen if token < len(logits)], dtype=torch.long)
            scores = logits[seen]
            logits = logits.index_copy(0, seen, torch.where(scores < 0, scores * self._penalty, scores / self._penalty))
        token = self._draw(logits / self._temperature) if self._temperature > 0 else int(logits.argmax())
        self._seen[token] = None
        return token

    def _draw(self, logits: torch.Tensor) -> int:
        u = self._random.random()
        if self._top_k == 0 and self._top_p >= MICRO:
            return _at(torch.softmax(logits.double(), -1), u)
        if self._top_k:
            values, ids = torch.topk(logits, min(self._top_k, len(logits)))
            probabilities = torch.softmax(values.double(), -1)
        else:
            shares = torch.exp(logits - logits.max())
            whole = float(shares.sum())
            ids = (shares > math.exp(-MARGIN)).nonzero().squeeze(1)
            if float(shares[ids].sum()) * MICRO < self._top_p * whole:
                ids = torch.arange(len(logits))
            values, order = torch.sort(shares[ids], descending=True, stable=True)
            ids, probabilities = ids[order], values.double() / whole
        before = probabilities.cumsum(-1) - probabilities
        kept = max(1, int((before * MICRO < self._top_p).sum()))  # the most likely token always stays
        return int(ids[_at(probabilities[:kept], u)])


def _at(weights: torch.Tensor, u: float) -> int:
    """Index where the cumulative weights (any total) pass the share `u` in [0, 1)."""
    sums = weights.cumsum(-1)
    return min(int(torch.searchsorted(sums, u * float(sums[-1]), right=True)), len(weights) - 1)
