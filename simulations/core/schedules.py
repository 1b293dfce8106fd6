"""Many schedules in a row: drawn from seeds, played, summed up in one digest."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from nsllm.simulations.core.draw import draw
from nsllm.simulations.core.plan import Plan
from nsllm.simulations.core.world import World
from nsllm.simulations.errors import InvariantError

CHUNK: Final = 50
"""Schedules that one process plays before it reports."""


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
    broken: int
    """Schedules in which agreement broke because more than f were Byzantine; in each f+1 of them were named."""
    seconds: float
    """Wall time; this and the next are the only fields that seeds do not determine."""
    cpu_seconds: float
    """Processor time that the schedules took, of all processes together; tells more on a busy machine."""
    digest: str

    @property
    def per_minute(self) -> float:
        """Schedules a minute, by all processes together."""
        return 60 * self.schedules / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Series:
    """Schedules `seed`, `seed + 1`, …; each is a world of its own. See `draw` for the fields."""

    peers: int
    seed: int
    schedules: int
    byzantine: int | None = None

    def chunks(self) -> list[Series]:
        """The same schedules, in parts."""
        return [
            Series(self.peers, self.seed + first, min(CHUNK, self.schedules - first), self.byzantine)
            for first in range(0, self.schedules, CHUNK)
        ]


@dataclass(frozen=True, slots=True)
class _Part:
    violations: tuple[Violation, ...]
    events: int
    broken: int
    cpu_seconds: float
    digests: str


def run_schedules(series: Series, *, jobs: int = 1, progress: Callable[[int], None] | None = None) -> Summary:
    """Play a series.

    Args:
        series: which schedules.
        jobs: how many processes share the work; everything but the time is the same whatever it is.
        progress: told from time to time how many are done.
    """
    began = time.monotonic()
    total = hashlib.sha256()
    violations: list[Violation] = []
    events = broken = done = 0
    cpu_seconds = 0.0
    with _mapper(jobs) as parts_of:
        for part in parts_of(series.chunks()):
            violations += part.violations
            events += part.events
            broken += part.broken
            cpu_seconds += part.cpu_seconds
            total.update(part.digests.encode())
            done = min(series.schedules, done + CHUNK)
            if progress is not None:
                progress(done)
    seconds = time.monotonic() - began
    return Summary(series.schedules, tuple(violations), events, broken, seconds, cpu_seconds, total.hexdigest())


def played(plan: Plan, *, trace: list[str] | None = None) -> tuple[World, str]:
    """One schedule: its world at the end, and what did not hold (empty: all did).

    Args:
        plan: what goes wrong.
        trace: gets a line for every event, if given.
    """
    world = World(plan, trace=trace)
    try:
        world.run()
    except InvariantError as error:
        return world, str(error)
    except Exception as error:  # noqa: BLE001 - what the code under test raises is a finding like any other
        return world, f"{type(error).__name__}: {error}"
    return world, ""


@contextmanager
def _mapper(jobs: int) -> Iterator[Callable[[Iterable[Series]], Iterable[_Part]]]:
    if jobs == 1:
        yield lambda chunks: map(_play, chunks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda chunks: pool.map(_play, chunks)


def _play(chunk: Series) -> _Part:
    began = time.process_time()
    violations: list[Violation] = []
    events = broken = 0
    digests: list[str] = []
    for seed in range(chunk.seed, chunk.seed + chunk.schedules):
        world, violation = played(draw(seed, chunk.peers, chunk.byzantine))
        if violation:
            violations.append(Violation(seed, violation))
        events += world.events
        broken += world.promises.broken is not None
        digests.append(world.digest())
    return _Part(tuple(violations), events, broken, time.process_time() - began, "".join(digests))
