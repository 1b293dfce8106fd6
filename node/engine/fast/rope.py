"""Rotary positions of a model: how fast each pair of numbers turns. Reads configurations only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

THETA: Final = 10_000.0
"""Where a configuration says nothing."""


@dataclass(frozen=True, slots=True)
class Fade:
    """Which pairs are slowed down: those that turn less than `low` times within `trained_tokens`. Those that turn more
    than `high` times keep their pace, and between the two it fades over (Llama 3.1).
    """  # noqa: D205 - one sentence

    low: float
    high: float
    trained_tokens: float


@dataclass(frozen=True, slots=True)
class Rope:
    """Pair i of d turns by `theta ** (-i / d)` a token, slower where contexts are longer than those of the training."""

    theta: float
    factor: float = 1.0
    """How much slower."""
    fade: Fade | None = None
    """None: all are slowed down alike."""


def read_rope(config: Mapping[str, Any]) -> Rope | None:
    """What a config.json says; None if that is of another kind than those known here: `default`, `linear`, `llama3`.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: something is missing, or no number.
    """
    new, old = (config.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
    if new and old and new != old:
        return None
    stated: Mapping[str, Any] = new or old
    theta = float(stated.get("rope_theta") or config.get("rope_theta") or THETA)
    if float(stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        return None
    match stated.get("rope_type", stated.get("type", "default")):
        case "default":
            return Rope(theta)
        case "linear":
            return Rope(theta, float(stated["factor"]))
        case "llama3":
            low, high = float(stated["low_freq_factor"]), float(stated["high_freq_factor"])
            trained_tokens = float(stated["original_max_position_embeddings"])
            return Rope(theta, float(stated["factor"]), Fade(low, high, trained_tokens)) if 0 < low < high else None
        case _:
            return None
