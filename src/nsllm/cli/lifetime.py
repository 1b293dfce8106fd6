"""How long a serving command lives: until a signal, or until its parent is gone; never longer than a bound after that.

The first SIGINT, SIGTERM or SIGHUP cancels the work; a second one ends the process at once; and if the work has not
ended `stop_s` seconds after the first, the process ends anyway. The handlers are Python's own, not trio's: they run
even while the event loop is busy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

import trio

STOP_S: Final = 3.5
"""A peer's bound; `nsllm devnet` gives its peers a little longer before it kills them, within its own 5 s."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECOND_SIGNAL: Final = 130
SAME_GESTURE_S: Final = 0.5
"""make and timeout pass on a signal that a whole process group gets: what comes twice at once was meant once."""


def serve(work: Callable[[], Awaitable[None]], *, stop_s: float = STOP_S) -> bool:
    """Run `work` under trio until it returns or a signal comes; True if it was a signal that ended it."""
    stopped = False

    async def body() -> None:
        nonlocal stopped
        with trio.CancelScope() as scope, stopping(scope, stop_s):
            await work()
        stopped = scope.cancelled_caught

    trio.run(body)
    return stopped


def leave() -> NoReturn:
    """End the process now, everything being closed: taking the interpreter apart would cost seconds more."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def stopping(scope: trio.CancelScope, stop_s: float) -> Iterator[None]:
    """Signals cancel `scope` while this context is open; entered in trio, on the main thread."""
    token = trio.lowlevel.current_trio_token()
    deadline = threading.Timer(stop_s, os._exit, [1])
    deadline.daemon = True
    first_s: float | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
        nonlocal first_s
        if first_s is None:
            first_s = time.monotonic()
            deadline.start()
            token.run_sync_soon(scope.cancel)
        elif time.monotonic() - first_s > SAME_GESTURE_S:
            os._exit(SECOND_SIGNAL)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        deadline.cancel()


def end_with_parent() -> None:
    """Send ourselves SIGTERM once standard input ends.

    The parent holds the other end of that pipe, and the kernel closes it however the parent dies. PR_SET_PDEATHSIG
    would not do: it fires when the parent's thread ends, and trio starts processes from threads that come and go.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
