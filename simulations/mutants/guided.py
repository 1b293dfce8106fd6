"""Guided schedules as a scenario: validators crash and conspire, links aim; see `nsllm.simulations.core`."""

from __future__ import annotations

from typing import Final

from nsllm.simulations.core.draw import draw
from nsllm.simulations.core.schedules import played
from nsllm.simulations.errors import InvariantError

SCHEDULES: Final = 250
"""As many find every rule out that is broken in the catalogue's mutants of theirs, several times over."""


def guided_schedules_hold() -> None:
    """The first schedules of `nsllm sim core --peers 4`."""
    for seed in range(1, SCHEDULES + 1):
        world, violation = played(draw(seed, 4))
        if violation:
            raise InvariantError(f"seed {seed} ({world.plan.guide}): {violation}")
