"""Where a validator's CPU time goes, counted rather than sampled: each thread's own clock is read where work changes.

trio tells when a task begins and ends a step; what a step computes is its task's kind of work. Work that has a kind of
its own wherever it is done (signatures, encoding, log and guard, the chain) is counted in the functions that do it, and
taken off whatever called them. Blocking work in threads is the database's but for those. What the main thread computes
between steps is scheduling. Reading a thread's clock costs half a microsecond, a tenth of all work here: so nothing is
timed while rates and latencies are measured.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from nsllm import canonical, crypto
from nsllm.consensus.guard_file import GuardFile
from nsllm.consensus.wal import WriteAheadLog
from nsllm.governance.evm import Evm
from nsllm.offload import ThreadOffload

FUNCTIONS: Final = (
    (crypto, "recover", "signatures"),
    (crypto.MemberKey, "sign", "signatures"),
    (canonical, "encode", "encoding"),
    (canonical, "decode", "encoding"),
    (canonical, "digest", "encoding"),
    (WriteAheadLog, "append", "log and guard"),
    (WriteAheadLog, "sync", "log and guard"),
    (WriteAheadLog, "reset", "log and guard"),
    (GuardFile, "write", "log and guard"),
    (Evm, "_execute", "chain"),
    (Evm, "state_root", "chain"),
)
TASKS: Final = {
    "nsllm.node.agreement": "agreement",
    "nsllm.node.examiner": "observations",
    "nsllm.node.auditor": "audit log",
    "benchmarks.": "benchmark",
    "nsllm.": "network",
    "libp2p.": "network",
}
"""Kind of work by the beginning of a task's name; the library's services have names of their own."""


class CpuSplit(trio.abc.Instrument):
    """Counts between `start` and `stop`, in trio's thread. One a process; while it does not count it costs nothing."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._seconds: Counter[str] = Counter()
        self._tasks: dict[str, str] = {}
        self._plain = [(owner, name, getattr(owner, name)) for owner, name, _ in FUNCTIONS]
        self._plain.append((ThreadOffload, "run", ThreadOffload.run))

    def start(self) -> None:
        """Begin to count: every function and every step of a task is timed from here on."""
        for owner, name, kind in FUNCTIONS:
            setattr(owner, name, self._counted(getattr(owner, name), kind))
        self._count_threads()
        trio.lowlevel.add_instrument(self)
        self._enter("scheduling")
        self._seconds.clear()

    def stop(self) -> dict[str, float]:
        """CPU seconds by kind of work since `start`."""
        self._enter("scheduling")
        trio.lowlevel.remove_instrument(self)
        for owner, name, function in self._plain:
            setattr(owner, name, function)
        return dict(self._seconds)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio calls it."""
        name = task.name
        if name not in self._tasks:
            self._tasks[name] = next((kind for part, kind in TASKS.items() if name.startswith(part)), "network")
        self._enter(self._tasks[name])

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - the instrument's signature
        """Trio calls it."""
        self._enter("scheduling")

    def _enter(self, kind: str) -> str:
        """From here on this thread does work of `kind`; what it did before."""
        now = time.thread_time()
        before: str = getattr(self._here, "kind", kind)
        self._seconds[before] += now - getattr(self._here, "since", now)
        self._here.kind, self._here.since = kind, now
        return before

    @contextmanager
    def _as(self, kind: str) -> Iterator[None]:
        before = self._enter(kind)
        try:
            yield
        finally:
            self._enter(before)

    def _counted(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            before = self._enter(kind)
            try:
                return function(*arguments, **named)
            finally:
                self._enter(before)

        return counted

    def _count_threads(self) -> None:
        run = ThreadOffload.run

        async def counted(offload: ThreadOffload, work: Callable[[], Any]) -> Any:
            def in_thread() -> Any:
                with self._as("database"):
                    return work()

            return await run(offload, in_thread)

        ThreadOffload.run = counted  # type: ignore[assignment,method-assign]
