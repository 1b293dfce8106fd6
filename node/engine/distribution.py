"""What may be drawn as the next token, and how: the definition of the sampling parameters.

The order is vLLM's: tokens that are ruled out, `logit_bias`, repetition, frequency and presence penalty,
temperature, `min_p`, `top_k`, `top_p`. `fast/select.c` gives the same token for the same numbers: scores are
single precision in a fixed order of operations, weights are whole numbers whose sums are exact in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Mask = NDArray[np.uint32]
"""One bit for each token, 32 in a word, lowest first; what lies beyond is 0."""

MICRO: Final = 1_000_000
BITS: Final = 40
"""The most likely token weighs 2^40, so that tokens 2^-40 as likely are never drawn."""
LOWEST: Final = np.float32(-60)
"""Binary logarithm below which every weight is 0."""
POWER: Final = tuple(
    np.float32(c)
    for c in (
        0.001879316521808505,
        0.008990999311208725,
        0.055818673223257065,
        0.240159273147583,
        0.6931517124176025,
        1.0,
    )
)
"""2^f for f from 0 to 1, highest power first: within 2e-7, rising, exact at both ends in single precision."""
DRAW_BITS: Final = 53
"""Of a random number, as `random.Random.random` makes them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a distribution may be drawn, and how sharp it is."""

    scale: np.float32
    """log2(e) / temperature; 0 for temperature 0: the most likely token."""
    top_k: int
    """0: off."""
    top_p_micro: int
    """A million or more: off."""
    min_p_micro: int


@dataclass(frozen=True, slots=True)
class Adjustments:
    """What changes logits before anything is drawn. Tokens beyond the vocabulary are passed over."""

    banned: Ints
    always_banned: int
    """How many of `banned`, the first of them, stay so even if nothing else may be chosen."""
    biased: Ints
    bias: Floats
    """Added to the logits of `biased`."""
    seen: Ints
    """Tokens of prompt and answer that penalties look at, each once."""
    counts: Ints
    """How often each of them stands in the answer."""
    repetition: np.float32
    frequency: np.float32
    presence: np.float32


def scale_of(temperature_micro: int) -> np.float32:
    """What differences of logits are multiplied by."""
    return np.float32(math.log2(math.e) / (temperature_micro / MICRO) if temperature_micro > 0 else 0)


def adjusted(logits: Floats, change: Adjustments | None, mask: Mask | None) -> Floats:
    """The scores that are chosen from.

    Args:
        logits: (vocabulary,), left as they are.
        change: None: nothing.
        mask: of the tokens that are allowed; None: all are.
    """
    size = len(logits)
    scores = logits.copy()
    if mask is not None:
        allowed = np.unpackbits(mask.view(np.uint8), count=size, bitorder="little")
        scores[allowed == 0] = -np.inf
    if change is None:
        return scores
    scores[change.banned[change.banned < size]] = -np.inf
    known = change.biased < size
    scores[change.biased[known]] += change.bias[known]
    known = change.seen < size
    seen, counts = change.seen[known], change.counts[known]
    with np.errstate(over="ignore"):
        old = scores[seen]
        new = np.where(old < 0, old * change.repetition, old / change.repetition)
        new = new - change.frequency * counts.astype(np.float32)
        scores[seen] = np.where(counts > 0, new - change.presence, new)
    return scores


def highest_of(scores: Floats) -> np.float32:
    """The highest score; minus infinity if there is none. NaN is none."""
    return np.float32(np.fmax.reduce(scores, initial=-np.inf))


def weights(scores: Floats, scale: np.float32) -> NDArray[np.uint64]:
    """Whole part of 2^40 * exp((score - highest) / temperature), computed so that every machine gets the same."""
    with np.errstate(invalid="ignore", over="ignore"):
        powers = (scores - highest_of(scores)) * scale
        powers = np.where(powers > LOWEST, powers, LOWEST)  # NaN is not above it
    whole = np.floor(powers)
    part = powers - whole
    value = np.full_like(part, POWER[0])
    for coefficient in POWER[1:]:
        value = value * part + coefficient
    mantissa = (value * np.float32(2**23)).astype(np.uint64) << np.uint64(BITS - 23)
    result: NDArray[np.uint64] = mantissa >> (-whole).astype(np.uint64)
    return result


def choose(scores: Floats, limits: Limits, draw: int) -> int | None:
    """The token that `draw`, a whole number of 53 bits, stands for; None if no token has a score.

    Candidates are looked up in their cumulative weight, most likely first and the lower token first among equals; in
    order of token if neither top-k nor top-p limits them.
    """
    highest = highest_of(scores)
    if highest == -np.inf:
        return None
    most_likely = int(np.flatnonzero(scores == highest)[0])
    if limits.scale == 0:
        return most_likely
    weight = weights(scores, limits.scale)
    tokens = np.flatnonzero(weight >= max(1, share(2**BITS, min(limits.min_p_micro, MICRO))))
    if limits.top_k or limits.top_p_micro < MICRO:
        tokens = tokens[np.argsort(-weight[tokens].astype(np.int64), kind="stable")]
    if limits.top_k:
        tokens = tokens[: limits.top_k]
    sums = weight[tokens].cumsum()
    if limits.top_p_micro < MICRO and len(tokens):
        before = sums - weight[tokens]
        sums = sums[: max(1, int((before < share(int(sums[-1]), limits.top_p_micro)).sum()))]
    if not len(tokens):  # the highest score is infinite
        return most_likely
    target = draw * int(sums[-1]) >> DRAW_BITS
    return int(tokens[np.searchsorted(sums, np.uint64(target), side="right")])


def log_probability(logit: float, highest: float, total: int) -> float:
    """Natural logarithm of a token's probability, from the sum of all weights at temperature 1."""
    return logit - highest - (math.log(total) - BITS * math.log(2)) if total else -math.inf


def share(total: int, micro: int) -> int:
    """That many millionths of a weight, rounded up."""
    return -(-total * micro // MICRO)
