"""Directed liars about scores: f of the observations are theirs, and the result must stay among the honest ones."""

from __future__ import annotations

from nsllm.consensus.observation import lower_median
from nsllm.simulations.mutants.holds import holds
from nsllm.simulations.mutants.made import make_keys, make_set


def liars_do_not_move_a_score() -> None:
    """As many observations as a score needs, f of them as low or as high as can be, chosen by a leader."""
    honest = [500_000 + 10_000 * i for i in range(13)]
    for size in range(1, 14):
        validators = make_set(make_keys(size))
        enough, liars = validators.enough_observations, validators.faults
        for lie in (0, 1_000_000):
            truthful = honest[: enough - liars]
            agreed = lower_median([*truthful, *[lie] * liars])
            holds(
                min(truthful) <= agreed <= max(truthful),
                f"{liars} of {size} validators give {agreed} ppm, honest ones {truthful}",
            )
