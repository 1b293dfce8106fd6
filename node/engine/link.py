"""One worker process as the peer sees it: started, fed with messages, listened to, killed."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from nsllm.errors import EncodingError
from nsllm.node.engine.devices import HERE, Devices
from nsllm.node.engine.protocol import FromWorker, Ping, ToWorker, frame, peer_reader
from nsllm.node.errors import EngineError

log = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 16
TRACE_LINES: Final = 80
"""Last lines of a worker's standard error that are kept to explain its death."""
LAST_WORDS_S: Final = 1.0
ERROR_LINE: Final = re.compile(r"[\w.]+(Error|Exception|Missing|Interrupt)\b")
"""How the last line of a Python trace begins."""


LOAD_LIMIT_S: Final = 180.0
SLOW_READ_BYTES_S: Final = 50 << 20
"""Of a network disk that several processes read at once."""


def patience_s(text: Path) -> float:
    """How long a worker may take to load the model in this folder: more for one of many gigabytes."""
    return LOAD_LIMIT_S + sum(file.stat().st_size for file in text.glob("*.safetensors")) / SLOW_READ_BYTES_S


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker is started and how long it may be silent."""

    text: Path
    encoder: Path
    threads: int
    dtype: str = "float32"
    """What the fast or batched path computes in."""
    library: Path | None = None
    """The compiled kernels; None, and no device: the general path."""
    device: str | None = None
    """Of the batched path, as the worker sees it; None: another path."""
    cache_mb: int = 512
    """Memory for keys and values on the fast and batched paths."""
    packed: Path | None = None
    """Folder and model name of the fast path's packed weights; None: they are packed at each start."""
    devices: Devices = HERE
    """Where the batched or general path runs the text model."""
    load_limit_s: float = LOAD_LIMIT_S
    """Until both models are loaded, see `patience_s`."""
    ping_interval_s: float = 2.0
    silence_limit_s: float = 20.0
    """Without any message, pings unanswered: the worker is frozen. A unit of work takes 0.15 s, or more if the machine
    is busy."""


class WorkerLink:
    """A running worker. Made by `open_worker`, which also ends it."""

    def __init__(self, process: subprocess.Popen[bytes], stream: trio.SocketStream, settings: WorkerSettings) -> None:
        self._process = process
        self._stream = stream
        self._settings = settings
        # Bounded by what the supervisor lets run: no sender ever waits, so that a cancelled caller can still say so.
        self._outbox, self._to_send = trio.open_memory_channel[bytes](10_000)
        self._reader = peer_reader()
        self._trace: deque[str] = deque(maxlen=TRACE_LINES)
        self._trace_ended = trio.Event()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def post(self, message: ToWorker) -> None:
        """Send a message in its turn; silently nothing once the worker is gone (its reader hears of that).

        Raises:
            EncodingError: the message is too long.
        """
        try:
            self._outbox.send_nowait(frame(message))
        except (trio.BrokenResourceError, trio.WouldBlock):
            log.warning("worker_not_listening pid=%d message=%s", self.pid, type(message).__name__)

    async def receive(self, limit_s: float) -> list[FromWorker]:
        """The next messages.

        Raises:
            EngineError: the worker died, is silent for `limit_s`, or talks nonsense; says which.
        """
        while True:
            with trio.move_on_after(limit_s) as silence:
                try:
                    data = await self._stream.receive_some(READ_BYTES)
                except trio.BrokenResourceError:
                    data = b""
            if silence.cancelled_caught:
                raise EngineError(f"the model worker was silent for {limit_s} s", hint="it is killed and started again")
            if not data:
                raise EngineError(f"the model worker died: {await self._last_words()}", hint="it is started again")
            try:
                messages = self._reader.feed(data)
            except EncodingError as error:
                raise EngineError(f"the model worker sent {error.message}", hint="it is started again") from None
            if messages:
                return messages

    async def run_writer(self) -> None:
        """Write what is posted; ends with the worker."""
        try:
            async with self._to_send:
                async for data in self._to_send:
                    await self._stream.send_all(data)
        except trio.BrokenResourceError:
            return  # the reader hears of it and says so

    async def run_pings(self) -> None:
        """Ask for a sign of life, so that silence means something."""
        while True:
            await trio.sleep(self._settings.ping_interval_s)
            self.post(Ping())

    async def run_trace(self) -> None:
        """Keep the last lines that the worker writes to standard error."""
        assert self._process.stderr is not None
        rest = b""
        async with trio.lowlevel.FdStream(os.dup(self._process.stderr.fileno())) as stream:
            async for data in stream:
                *lines, rest = (rest + data).split(b"\n")
                self._trace.extend(line.decode("utf-8", "replace").rstrip()[:500] for line in lines)
                rest = rest[-500:]
        self._trace_ended.set()

    async def _last_words(self) -> str:
        """Exit status and the last line of its trace."""
        with trio.move_on_after(LAST_WORDS_S):  # its socket closes a moment before the rest of it
            await self._trace_ended.wait()
        try:
            status = str(await trio.to_thread.run_sync(self._process.wait, LAST_WORDS_S))
        except subprocess.TimeoutExpired:
            status = "none yet"
        lines = [line for line in self._trace if line.strip()]
        raised = [line for line in lines if ERROR_LINE.match(line)]
        said = (raised or lines or ["no trace"])[-1]
        for line in lines:
            log.warning("worker_trace pid=%d line=%s", self.pid, line)
        return f"exit status {status}, {said}"


@asynccontextmanager
async def open_worker(settings: WorkerSettings) -> AsyncIterator[WorkerLink]:
    """Start a worker; leaving the block kills it and waits until it is gone.

    Raises:
        EngineError: the process cannot be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "nsllm.node.engine.worker", "--fd", str(theirs.fileno())]
        command += ["--parent", str(os.getpid()), "--threads", str(settings.threads)]
        command += ["--text", str(settings.text), "--encoder", str(settings.encoder)]
        command += ["--dtype", settings.dtype, "--cache-mb", str(settings.cache_mb)]
        command += ["--parallel", settings.devices.parallel, "--devices", ",".join(settings.devices.names)]
        if settings.library is not None:
            command += ["--library", str(settings.library)]
        if settings.device is not None:
            command += ["--device", settings.device]
        if settings.packed is not None:
            command += ["--packed", str(settings.packed)]
        try:
            # Not trio's open_process: it forks in a helper thread, and the kernel's parent-death signal, which the
            # worker asks for, fires when that thread ends.
            process = subprocess.Popen(  # noqa: ASYNC220 - a fork and exec, about 2 ms
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=_environment(settings),
            )
        except OSError as error:
            ours.close()
            raise EngineError(f"cannot start the model worker: {error}", hint="free memory or processes") from None
    ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    log.info("worker_started pid=%d text=%s threads=%d", process.pid, settings.text.name, settings.threads)
    try:
        yield WorkerLink(process, stream, settings)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await trio.to_thread.run_sync(process.wait)
            await trio.aclose_forcefully(stream)
            if process.stderr is not None:
                process.stderr.close()


def _environment(settings: WorkerSettings) -> dict[str, str]:
    """Set before torch is imported: threads that sleep while they wait, GPUs, no network, quiet libraries."""
    return {
        **os.environ,
        **settings.devices.environment(os.environ),
        "OMP_NUM_THREADS": str(settings.threads),
        "MKL_NUM_THREADS": str(settings.threads),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
    }
