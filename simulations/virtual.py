"""Running trio on virtual time, deterministically: the same seed schedules the same tasks in the same order.

trio shuffles each batch of runnable tasks. Its test-only switch `_ALLOW_DETERMINISTIC_SCHEDULING` makes it sort the
batch first and shuffle with its own random source, which is seeded here. Both names are private to trio (checked in
0.35; a test fails when they move). The mock clock jumps to the next deadline as soon as nothing is left to do.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio
from trio._core import _run as scheduler
from trio.testing import MockClock

R = TypeVar("R")

_SWITCH: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"
COLLECT_S: Final = 30.0
EPOCH_MS: Final = 1_800_000_000_000
"""Wall time at which every simulation begins."""


def run_virtual(seed: int, main: Callable[[], Awaitable[R]]) -> R:
    """Result of `main()` under a mock clock and a scheduler that the seed determines. Not reentrant."""

    async def run() -> R:
        trio.lowlevel.spawn_system_task(_collect)
        return await main()

    with _deterministic(seed):
        return trio.run(run, clock=MockClock(autojump_threshold=0))


async def _collect() -> None:
    """Collect garbage at moments that the virtual clock determines; what survives is not looked at again."""
    while True:
        await trio.sleep(COLLECT_S)
        gc.collect()
        gc.freeze()


@contextmanager
def _deterministic(seed: int) -> Generator[None]:
    allowed = getattr(scheduler, _SWITCH)
    state = scheduler._r.getstate()  # noqa: SLF001 - the only way, see above
    collecting = gc.isenabled()
    setattr(scheduler, _SWITCH, True)
    scheduler._r.seed(seed)  # noqa: SLF001
    gc.disable()  # finalizers of async generators would run when the collector likes
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        setattr(scheduler, _SWITCH, allowed)
        scheduler._r.setstate(state)  # noqa: SLF001
        gc.unfreeze()
        if collecting:
            gc.enable()


def seeded(seed: int, *path: object) -> random.Random:
    """An independent random source for one part of a simulation, named by its path."""
    return random.Random(f"{seed}/{'/'.join(map(str, path))}")  # noqa: S311 - reproducible, not secret
