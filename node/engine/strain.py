"""Strain: how far logits must be bent for the declared sampling to give the token that was published.

Whoever recomputes an answer in other numbers (int8 for bfloat16, another kernel) finds logits that differ a little, so
"the same token" is too much to ask. The strain of a token is the smallest of `LEVELS` such that logits which each
differ by at most half of it from ours could have given the token, with the random number that the declared seed gives
in its place. What another model said, or another temperature, strains many tokens, and some of them by whole logits. A
token that weighs less than 2^-40 of the likeliest one here is never explained.

`fast/select.c` gives the same numbers for the same logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nsllm.node.engine import distribution
from nsllm.node.engine.distribution import BITS, DRAW_BITS, MICRO, Floats, Limits

LEVELS: Final = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Logits. Two paths of one model differ by about 0.2 at the tokens that matter, two models by whole logits."""
MOST_BENT: Final = -500.0
"""Binary logarithm of the largest change of a ratio of weights that is reckoned with."""
BEYOND: Final = 16.0
"""Strain of a token that none of the levels explains."""


@dataclass(frozen=True, slots=True)
class Strain:
    """How well one published token fits."""

    logits: float
    """One of `LEVELS`, or `BEYOND`."""
    surprise: float = 0.0
    """Nats by which it is less likely than tokens that the declared sampling draws here are on average."""
    variance: float = 0.0
    """Of the surprise of a token that is drawn so; nats squared."""


NOT_POSSIBLE: Final = Strain(BEYOND)


def strain_of(scores: Floats, limits: Limits, token: int, draw: int) -> Strain:
    """How well a token fits the scores that it was chosen from.

    Args:
        scores: (vocabulary,) after everything that changes logits.
        limits: of the declared sampling.
        token: that was published.
        draw: the declared seed's random number here.
    """
    own = distribution.choose(scores, limits, draw)
    if own is None or not 0 <= token < len(scores) or not scores[token] > -math.inf:
        return NOT_POSSIBLE
    highest = float(distribution.highest_of(scores))
    weight = distribution.weights(scores, limits.scale) if limits.scale else np.zeros(len(scores), np.uint64)
    least = max(1, distribution.share(2**BITS, min(limits.min_p_micro, MICRO)))
    if not (weight >= least).any():  # the most likely token is taken
        gap = 0.0 if own == token else highest - float(scores[token])
        return Strain(next((level for level in LEVELS if gap <= level), BEYOND))
    around = _Around(scores.astype(np.float64), weight.astype(np.float64), limits, token, least)
    kept, k_sum = _kept(weight, limits, least)
    bends = (bend for bend in LEVELS[1:] if around.allows(bend, k_sum, draw))
    strain = 0.0 if own == token else next(bends, BEYOND)
    nats = float(limits.scale) * math.log(2)
    powers = nats * (scores[kept].astype(np.float64) - highest)
    shares = weight[kept] / float(weight[kept].sum())
    mean = float((shares * powers).sum())
    variance = float((shares * powers**2).sum()) - mean**2
    return Strain(strain, mean - nats * (float(scores[token]) - highest), max(0.0, variance))


def _kept(weight: NDArray[np.uint64], limits: Limits, least: int) -> tuple[NDArray[np.intp], float]:
    """Tokens that may be drawn, and what the `top_k` most likely of them weigh together."""
    tokens = np.flatnonzero(weight >= least)
    if limits.top_k or limits.top_p_micro < MICRO:
        tokens = tokens[np.argsort(-weight[tokens].astype(np.int64), kind="stable")]
    if limits.top_k:
        tokens = tokens[: limits.top_k]
    k_sum = int(weight[tokens].sum())
    if limits.top_p_micro < MICRO:
        before = weight[tokens].cumsum() - weight[tokens]
        tokens = tokens[: max(1, int((before < distribution.share(k_sum, limits.top_p_micro)).sum()))]
    return tokens, float(k_sum)


@dataclass(frozen=True, slots=True)
class _Around:
    """What stands before and after a token in the order of drawing, and how far bending moves it."""

    scores: NDArray[np.float64]
    weight: NDArray[np.float64]
    limits: Limits
    token: int
    least: int

    def allows(self, bend: float, k_sum: float, draw: int) -> bool:
        """Whether logits that differ by at most half of `bend` could have given the token."""
        limits, own = self.limits, self.scores[self.token]
        ratio = 2.0 ** max(MOST_BENT, -bend * float(limits.scale))
        loose, strict = self.least * ratio, self.least / ratio
        weight = self.weight
        if weight[self.token] == 0 or weight[self.token] < loose:
            return False
        among = (weight > 0) & (weight >= loose)
        kept = among & (weight >= strict)
        ranked = bool(limits.top_k) or limits.top_p_micro < MICRO
        if ranked:
            above = among & (self.scores > np.float32(own + bend))
            below = kept & (self.scores < np.float32(own - bend))
        else:
            place = np.arange(len(weight))
            above, below = kept & (place < self.token), kept & (place > self.token)
        if limits.top_k and int(above.sum()) >= limits.top_k:
            return False
        whole = float(weight[among].sum())
        start = _bent(float(weight[above].sum()), whole, ratio)
        end = 1 - _bent(float(weight[below].sum()), whole, ratio)
        top_p = min(limits.top_p_micro, MICRO) / MICRO
        most_kept, least_kept = 1.0, top_p
        if limits.top_k:
            total = float(weight[weight >= self.least].sum())
            most_kept = 1.0 if limits.min_p_micro else _bent(k_sum, total, 1 / ratio)
            least_kept *= _bent(k_sum, whole, ratio)
        if ranked and above.any() and not start < top_p * most_kept:  # the first may always be drawn
            return False
        at = draw / 2**DRAW_BITS
        return bool(start <= at * most_kept and end >= at * least_kept)


def _bent(part: float, whole: float, ratio: float) -> float:
    """The share of a set that weighs `part` of `whole`, once its weights are multiplied by `ratio` against the rest."""
    return part * ratio / (part * ratio + max(0.0, whole - part)) if part > 0 else 0.0
