"""Many schedules in a row: drawn from seeds, played, summed up in one digest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from nsllm.simulations.core.plan import draw
from nsllm.simulations.core.world import World
from nsllm.simulations.errors import InvariantError


@dataclass(frozen=True, slots=True)
class Violation:
    """A schedule in which something did not hold."""

    seed: int
    what: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a series of schedules gave."""

    schedules: int
    violations: tuple[Violation, ...]
    events: int
    seconds: float
    """Wall time; the only field that a seed does not determine."""
    digest: str

    @property
    def per_minute(self) -> float:
        """Schedules a minute."""
        return 60 * self.schedules / self.seconds if self.seconds else 0.0


def run_schedules(peers: int, schedules: int, seed: int, *, progress: Callable[[int], None] | None = None) -> Summary:
    """Play schedules `seed`, `seed + 1`, …; each is a world of its own.

    Args:
        peers: validators in each.
        schedules: how many.
        seed: of the first.
        progress: told how many are done, after each.
    """
    began = time.monotonic()
    total = hashlib.sha256()
    events = 0
    violations: list[Violation] = []
    for number in range(schedules):
        world = World(draw(seed + number, peers))
        try:
            world.run()
        except InvariantError as error:
            violations.append(Violation(seed + number, str(error)))
        events += world.events
        total.update(world.digest().encode())
        if progress is not None:
            progress(number + 1)
    return Summary(schedules, tuple(violations), events, time.monotonic() - began, total.hexdigest())


def replayed(peers: int, seed: int) -> tuple[World, list[str], str]:
    """One schedule again: its world, what happened event by event, and what did not hold (empty: all did)."""
    trace: list[str] = []
    world = World(draw(seed, peers), trace=trace)
    try:
        world.run()
    except InvariantError as error:
        return world, trace, str(error)
    return world, trace, ""
