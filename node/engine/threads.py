"""How many threads a model worker computes with, where nobody says."""

from __future__ import annotations

import os
from typing import Final

import psutil

MOST: Final = 8
"""A pass of a small model is over before more threads have found their share of it."""


def machine_threads(peers: int = 1) -> int:
    """Threads for each of `peers` workers: the physical cores that this process may use, shared fairly; at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(usable, psutil.cpu_count(logical=False) or usable)
    return max(1, min(cores, MOST * peers) // peers)
