"""Contestants take turns at a task; medians count.

First every way that a contestant knows is tried a few times and the quickest one kept, so that each shows its best.
Then all contestants go round after round, forwards and backwards, one at a time: what else the machine does in the
meantime hits them alike.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.contestants.process import Process

TRIES: Final = 3
"""Of each way, before the rounds, if it is done thoroughly; the least time decides."""


@dataclass(frozen=True)
class Timing:
    """One contestant at one task; medians over the rounds."""

    task: str
    who: str
    settings: str
    wall_ms: float
    """Of a step (decoding), or of the whole task."""
    cpu_ms: float
    """The same of all threads together: other programs on the machine change it less."""
    tokens_per_s: float
    """By wall time."""
    tokens_per_cpu_s: float
    rounds: int
    least_wall_ms: float


@dataclass(frozen=True)
class Task:
    """What contestants are asked for."""

    name: str
    do: str
    details: Mapping[str, int]
    steps: int = 1
    """That one turn consists of; times are those of a step."""


def compare(task: Task, contestants: Sequence[Process], rounds: int, *, thorough: bool) -> list[Timing]:
    """One timing a contestant, in their order."""
    settings = {who.name: _quickest(who, task, thorough=thorough) for who in contestants}
    seen: dict[str, list[dict[str, float]]] = {who.name: [] for who in contestants}
    for number in range(rounds):
        for who in contestants if number % 2 else contestants[::-1]:
            seen[who.name].append(_turn(who, task, settings[who.name]))
    timings = [_timing(task, who.name, settings[who.name], seen[who.name]) for who in contestants]
    for timing in timings:
        print(f"{timing.task}: {timing.who} {timing.wall_ms:.1f} ms [{timing.settings}]", file=sys.stderr, flush=True)
    return timings


def _quickest(who: Process, task: Task, *, thorough: bool) -> str:
    """The best of the contestant's settings."""
    ways: list[str] = who.ask("settings", of=task.do, thorough=thorough)["settings"]
    if len(ways) == 1:
        _turn(who, task, ways[0])  # warm-up
        return ways[0]
    least = {way: min(_turn(who, task, way)["wall_s"] for _ in range(TRIES if thorough else 1)) for way in ways}
    return min(ways, key=lambda way: least[way])


def _turn(who: Process, task: Task, settings: str) -> dict[str, Any]:
    return who.ask(task.do, **task.details, settings=settings)


def _timing(task: Task, who: str, settings: str, turns: Sequence[Mapping[str, float]]) -> Timing:
    wall, cpu = (statistics.median(turn[name] for turn in turns) for name in ("wall_s", "cpu_s"))
    tokens = turns[0]["tokens"]
    return Timing(
        task=task.name,
        who=who,
        settings=settings,
        wall_ms=wall / task.steps * 1000,
        cpu_ms=cpu / task.steps * 1000,
        tokens_per_s=tokens / wall,
        tokens_per_cpu_s=tokens / cpu,
        rounds=len(turns),
        least_wall_ms=min(turn["wall_s"] for turn in turns) / task.steps * 1000,
    )
