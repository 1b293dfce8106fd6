"""From likeness to a bound on the error: a logistic curve a neighbourhood, learned from what is observed there. Pure.

As in vCache (Schroeder et al. 2025, arXiv 2502.03771) the chance that a found answer is right is a logistic function of
likeness, with a midpoint and a slope of its own in every neighbourhood; a ceiling is added for places where even equal
wordings go wrong. All curves of a grid are weighed by how well they explain what was observed, beginning from weights
that were fitted over many neighbourhoods (`benchmarks/fit_reuse.py`). What counts is not the mean curve but a low
quantile of all of them: few observations leave much doubt, and doubt is answered by generating.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nsllm.cache_dht.likeness import FEATURES, Likeness
from nsllm.cache_dht.observations import BINS, LOWEST, Counts
from nsllm.ids import PPM_ONE, Ppm

MIDPOINTS: Final = tuple(t / 2 for t in range(-8, 17))
SLOPES: Final = (0.4, 0.8, 1.2, 1.6, 2.4)
CEILINGS: Final = (0.999, 0.99, 0.97, 0.9, 0.5, 0.1)
CURVES: Final = tuple(product(MIDPOINTS, SLOPES, CEILINGS))
DOUBT: Final = 0.05
"""Share of the curves' weight that may be more pessimistic than the bound."""
NEIGHBOURS_COUNT: Final = 0.5
"""What an observation of another record in the neighbourhood counts, against one of the record itself."""

Vector = NDArray[np.float64]


def chances(likeness: Vector) -> Vector:
    """Chance of being right at each likeness under each curve, (likenesses, curves)."""
    midpoint, slope, ceiling = _parameters()
    return np.asarray(ceiling / (1.0 + np.exp(-slope * (likeness[:, None] - midpoint))), np.float64)


@lru_cache(maxsize=1)
def _parameters() -> tuple[Vector, Vector, Vector]:
    """Midpoint, slope and ceiling of the curves, (1, curves) each."""
    midpoint, slope, ceiling = (np.array([column], np.float64) for column in zip(*CURVES, strict=True))
    return midpoint, slope, ceiling


def curves() -> Vector:
    """Chance of being right in the middle of each bin, (bins, curves)."""
    return chances(np.array([LOWEST + 0.5 + number for number in range(BINS)]))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is shipped: the likeness' weights, and how likely each curve is before anything was observed."""

    likeness: Likeness
    prior: tuple[float, ...]
    """A weight for each of `CURVES`; they add up to 1."""
    digest: str
    """SHA-256 of the file."""

    def error_bound(self, likeness: float, around: Counts, own: Counts) -> Ppm:
        """Upper bound on the chance that an answer found at this likeness is wrong, in millionths.

        Args:
            likeness: of the question to the record's.
            around: what was observed in the record's neighbourhood, the record itself left out.
            own: what was observed of the record itself.
        """
        weight = _prior(self.prior)
        if any(around) or any(own):
            right, wrong = _logarithms()
            counts = NEIGHBOURS_COUNT * np.array(around) + np.array(own)
            weight = weight + counts[:BINS] @ right + counts[BINS:] @ wrong
        weight = np.exp(weight - weight.max())
        chance = chances(np.array([likeness]))[0]
        order = np.argsort(chance, kind="stable")
        reached = np.cumsum(weight[order]) / weight.sum()
        lowest = float(chance[order[int(np.searchsorted(reached, DOUBT))]])
        return Ppm(PPM_ONE - int(lowest * PPM_ONE))


@lru_cache(maxsize=4)
def _prior(weights: tuple[float, ...]) -> Vector:
    """Logarithms of a prior's weights."""
    return np.log(np.array(weights, np.float64))


@lru_cache(maxsize=1)
def _logarithms() -> tuple[Vector, Vector]:
    """Of being right and of being wrong, (bins, curves)."""
    table = curves()
    return np.log(table), np.log1p(-table)


def read_calibration(data: bytes) -> Calibration:
    """A calibration from its JSON file.

    Raises:
        ValueError: made for other features or curves.
    """
    found: Any = json.loads(data)
    if tuple(found["features"]) != FEATURES or len(found["prior"]) != len(CURVES):
        raise ValueError("the reuse calibration was made for other features or curves: run benchmarks/fit_reuse.py")
    prior = np.array(found["prior"], np.float64)
    return Calibration(
        Likeness(tuple(map(float, found["weights"]))),
        tuple((prior / prior.sum()).tolist()),
        hashlib.sha256(data).hexdigest(),
    )


@lru_cache(maxsize=1)
def shipped() -> Calibration:
    """The calibration of this release."""
    return read_calibration(resources.files("nsllm.cache_dht").joinpath("data/reuse.json").read_bytes())
