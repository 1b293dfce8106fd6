"""A worker process ends with the process that started it: the kernel's signal on Linux, the socket's end everywhere."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
OOM_SCORE: Final = "500"
"""Under memory pressure the kernel takes a worker before the peer."""


def die_with(parent: int, connection: socket.socket) -> None:
    """End with the parent, whatever ends it, also in the middle of a computation.

    SIGTERM ends this process at once; SIGINT is the peer's affair. What a crash in native code was doing goes to
    standard error, which the supervisor keeps.

    Args:
        parent: process id; if it is not our parent any more, this process exits here.
        connection: whose other end only the parent holds.
    """
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):  # not every container lets us
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(0)
    threading.Thread(target=_exit_at_end, args=(connection.fileno(),), name="parent-watch", daemon=True).start()


def _exit_at_end(fd: int) -> None:
    """Leave the process when the other end of the socket is closed; touches no data."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR are always told
    poll.poll()
    os._exit(0)
