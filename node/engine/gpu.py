"""Whether torch can compute on a GPU here. Imports no torch: it asks a process of its own, once."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

DRIVERS: Final = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))
"""What the drivers of NVIDIA (Linux, WSL) and AMD put there; without one of them nobody is asked."""
LIMIT_S: Final = 60.0
"""Importing a CUDA build of torch takes seconds, from a cold disk many."""


@cache
def has_gpu() -> bool:
    """Whether `torch.cuda.is_available()`, with this process's CUDA_VISIBLE_DEVICES. Blocks, the first time."""
    if not any(driver.exists() for driver in DRIVERS):
        return False
    program = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
