"""The leading rank: the model worker, with the processes that run the other shares of its model.

Imported in the worker process only.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.distributed import barrier

from nsllm.node.engine.backend import Read
from nsllm.node.engine.devices import Devices
from nsllm.node.engine.general import CausalModel, GeneralCache
from nsllm.node.engine.protocol import frame
from nsllm.node.engine.ranks.meeting import LOOPBACK, environment, meet
from nsllm.node.engine.ranks.passes import Part, Pass
from nsllm.node.errors import EngineError

LAST_WORDS_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Follower:
    """One of the other ranks, as the leader holds it."""

    rank: int
    process: subprocess.Popen[bytes]
    connection: socket.socket


class LeadingModel:
    """A model that several ranks run: every pass is told to the others first, then made here."""

    def __init__(self, model: CausalModel, followers: Sequence[Follower]) -> None:
        self._model = model
        self._followers = followers
        self._closed: list[int] = []
        self.config = model.config
        self.end_token_ids = model.end_token_ids

    def open(self) -> GeneralCache:
        """An empty sequence; the others begin theirs when its first tokens come."""
        return self._model.open()

    def close(self, cache: GeneralCache) -> None:
        """The others forget the sequence with the next pass."""
        self._closed.append(cache.number)

    def forward(self, reads: Sequence[Read]) -> list[torch.Tensor]:
        """See `CausalModel.forward`; blocks for as long as another rank does not keep up.

        Raises:
            SystemExit: the pass failed here. The others stand somewhere within it, and the next one would mix with it:
                all ranks end, and with them every generation that runs.
        """
        parts = []
        for read in reads:
            assert isinstance(read.cache, GeneralCache)
            parts.append(Part(read.cache.number, tuple(read.token_ids), read.keep))
        data = frame(Pass(tuple(self._closed), tuple(parts)))
        self._closed.clear()
        try:
            for follower in self._followers:
                follower.connection.sendall(data)
            return self._model.forward(reads)
        except Exception:  # noqa: BLE001 - whatever it is, the ranks are out of step
            time.sleep(LAST_WORDS_S)  # if another rank has died, the watch says so and ends this process
            traceback.print_exc()
            sys.exit(1)


def lead(text: Path, devices: Devices, threads: int) -> LeadingModel:
    """Start the other ranks and load the model with them. They end with this process, and it ends with any of them.

    Raises:
        ConfigError: the model has no plan for being cut.
    """
    listener = socket.create_server((LOOPBACK, 0), backlog=devices.ranks)
    port = listener.getsockname()[1]
    followers = [_start(text, devices, threads, rank, port) for rank in range(1, devices.ranks)]
    threading.Thread(target=_watch, args=(followers,), name="ranks-watch", daemon=True).start()
    os.environ.update(environment(devices, 0, port))
    meet(devices, 0, listener)
    model = CausalModel(text, devices)
    barrier()  # nobody is ready before all are
    return LeadingModel(model, followers)


def _start(text: Path, devices: Devices, threads: int, rank: int, port: int) -> Follower:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "nsllm.node.engine.ranks.follower", "--fd", str(theirs.fileno())]
        command += ["--parent", str(os.getpid()), "--rank", str(rank), "--threads", str(threads)]
        command += ["--text", str(text), "--devices", ",".join(devices.names)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **environment(devices, rank, port)},
        )
    return Follower(rank, process, ours)


def _watch(followers: Sequence[Follower]) -> None:
    """End this process when one of the others has ended: without its share there is no model."""
    poll = select.poll()
    for follower in followers:
        poll.register(follower.connection, 0)  # POLLHUP and POLLERR are always told
    gone = {fd for fd, _ in poll.poll()}
    for follower in followers:
        if follower.connection.fileno() in gone:
            try:
                status = str(follower.process.wait(LAST_WORDS_S))
            except subprocess.TimeoutExpired:
                status = "none yet"
            lost = EngineError(f"rank {follower.rank} of {len(followers) + 1} ended, exit status {status}")
            sys.stderr.write("".join(traceback.format_exception_only(lost)))
    sys.stderr.flush()
    os._exit(1)
