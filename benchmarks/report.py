"""What every report says about its machine, and the Markdown that shows a result to people."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

import nsllm

LOOPS: Final = 9


def machine() -> dict[str, Any]:
    """Processor, memory, load, how fast Python runs just now, system, versions, command line and date."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "python_loop_ms": loop_ms(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "nsllm": nsllm.__version__,
        **{name: version(name) for name in ("torch", "transformers", "aiohttp")},
        "command": shlex.join(["python", *_module(), *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def at_end() -> dict[str, Any]:
    """What of a machine may have changed while something was measured on it."""
    return {"load_at_end": [round(load, 2) for load in os.getloadavg()], "python_loop_ms_at_end": loop_ms()}


def loop_ms() -> list[float]:
    """Least, median and most milliseconds that a plain loop takes: shared hosts vary within minutes."""
    took: list[float] = []
    for _ in range(LOOPS):
        began, total = time.perf_counter(), 0
        for number in range(500_000):
            total += number & 7
        took.append((time.perf_counter() - began) * 1000)
    return [round(value, 1) for value in (min(took), statistics.median(took), max(took))]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of rows with the same keys, numbers at the right."""
    names = list(rows[0])
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    lines = [f"| {' | '.join(names)} |", "|" + "|".join("---:" if right else "---" for right in numeric) + "|"]
    lines += ["| " + " | ".join(shown(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def facts(values: Mapping[str, Any]) -> str:
    """Names and values as a Markdown table."""
    return table([{"figure": name, "value": value} for name, value in values.items()])


def shown(value: Any) -> str:
    """A value as people read it; None is no data."""
    if value is None:
        return "no data"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(part) for part in value)
    return str(value)


def _module() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return sys.argv[:1] if spec is None else ["-m", spec.name]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
