"""How many threads a worker gets where nobody says."""

from __future__ import annotations

import os

import psutil
import pytest

from nsllm.node.engine.threads import machine_threads


@pytest.mark.parametrize(
    ("usable", "cores", "peers", "threads"),
    [
        (2, 2, 1, 2),
        (2, 2, 4, 1),
        (16, 8, 1, 8),
        (64, 32, 1, 8),
        (64, 32, 3, 8),
        (64, 32, 5, 6),
        (4, 32, 1, 4),
        (1, None, 1, 1),
    ],
)
def test_cores_are_shared_fairly(monkeypatch, usable, cores, peers, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(usable)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores if not logical else usable)
    assert machine_threads(peers) == threads
