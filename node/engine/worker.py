"""The model worker: the one process that holds torch. Started by the supervisor, never by hand.

    python -m nsllm.node.engine.worker --fd N --parent PID --text DIR --encoder DIR --threads N [--library FILE]

It ends when the peer does (the kernel's parent-death signal on Linux, and the socket's end everywhere), at once on
SIGTERM, and leaves SIGINT to the peer. A bug ends it with a trace; the supervisor starts another.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from nsllm.node.engine.protocol import FromWorker, Ready, frame, worker_reader

if TYPE_CHECKING:
    from nsllm.node.engine.backend import Backend

READ_BYTES: Final = 1 << 16
PR_SET_PDEATHSIG: Final = 1
OOM_SCORE: Final = "500"
"""Under memory pressure the kernel takes the worker before the peer."""


def main(arguments: list[str]) -> int:
    """Load both models, then serve until the peer goes."""
    parser = argparse.ArgumentParser(prog="nsllm model worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--library", type=Path, help="compiled fast path; without it, the general path")
    parser.add_argument("--dtype", default="float32", help="what the fast path computes in")
    parser.add_argument("--cache-mb", type=int, default=512)
    parser.add_argument("--packed", type=Path, help="FOLDER/MODEL of the fast path's packed weights")
    options = parser.parse_args(arguments)
    connection = socket.socket(fileno=options.fd)
    _die_with(options.parent, connection)
    serve(connection, options)
    return 0


def serve(connection: socket.socket, options: argparse.Namespace) -> None:
    """Load, say `Ready`, work until the connection ends."""
    started = time.perf_counter()
    import torch

    torch.set_num_threads(options.threads)
    torch.set_num_interop_threads(1)
    from nsllm.node.engine.scheduler import Scheduler

    def send(message: FromWorker) -> None:
        connection.sendall(frame(message))

    backend = load_backend(options)
    gc.collect()
    gc.freeze()  # the libraries stay for ever: later collections need not look at them
    scheduler = Scheduler(backend, send)
    reader = worker_reader()
    send(Ready(load_s=time.perf_counter() - started, rss_bytes=psutil.Process().memory_info().rss))
    work = (scheduler.step, scheduler.side)
    turn = 0
    while True:
        # Block only if there is nothing to do.
        if not scheduler.busy or select.select([connection], [], [], 0)[0]:
            data = connection.recv(READ_BYTES)
            if not data:
                return
            for message in reader.feed(data):
                scheduler.handle(message)
        work[turn]()
        turn = 1 - turn


def load_backend(options: argparse.Namespace) -> Backend:
    """The backend that the peer chose. Imports of the other one cost seconds, so it is not imported."""
    if options.library is None:
        from nsllm.node.engine.general import TransformersBackend

        return TransformersBackend(options.text, options.encoder)
    from nsllm.node.engine.fast.backend import FastBackend
    from nsllm.node.engine.fast.packed import Place

    return FastBackend(
        options.text,
        options.encoder,
        options.library,
        options.dtype,
        threads=options.threads,
        cache_mb=options.cache_mb,
        packed=None if options.packed is None else Place(options.packed.parent, options.packed.name),
    )


def _die_with(parent: int, connection: socket.socket) -> None:
    """End with the peer, whatever ends it, also in the middle of a computation."""
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
