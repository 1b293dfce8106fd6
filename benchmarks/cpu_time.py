"""CPU time of processes, and whether they are quiet: what they have yet to do is not part of what is measured next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import psutil


def family(pid: int) -> list[int]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process.pid, *(child.pid for child in process.children(recursive=True))]


def cpu_s(pids: Iterable[int]) -> float:
    """What processes took so far, all together; those that have ended count for nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def busy_cpus(families: Sequence[Sequence[int]], window_s: float) -> list[float]:
    """Processors that each family of processes keeps busy, on average over the time that this takes."""
    before, began = [cpu_s(pids) for pids in families], time.perf_counter()
    time.sleep(window_s)
    after, took_s = [cpu_s(pids) for pids in families], time.perf_counter() - began
    return [(late - early) / took_s for early, late in zip(before, after, strict=True)]
