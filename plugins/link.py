"""One plugin worker as the peer sees it: a process, a socket, and a queue of calls; supervised, restarted, given up."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import trio

from nsllm import canonical
from nsllm.errors import EncodingError
from nsllm.plugins.errors import WorkerError
from nsllm.plugins.loaded import Identity
from nsllm.plugins.wire import HEADER_BYTES, MAX_REPLY_BYTES, Call, Reply, body_length, frame

log = logging.getLogger(__name__)

QUEUED_CALLS: Final = 64
STRIKES: Final = 3
"""Failures in a row after which a plugin that is not built in is disabled."""
PASSED_ON: Final = (
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONHASHSEED",
    "VIRTUAL_ENV",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
)
"""Environment of a worker: nothing that may hold a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Time and memory of one worker."""

    start_s: float = 20.0
    """Import of a plugin included; four peers may start at once on two cores."""
    call_s: float = 2.0
    """One hook call; the built-in layers take some milliseconds."""
    wait_s: float = 5.0
    """What a caller waits at most, queue and restart included."""
    first_backoff_s: float = 0.1
    last_backoff_s: float = 5.0
    memory_bytes: int = 2 * 1024**3
    """Address space of a third-party worker."""


@dataclass(slots=True, eq=False)
class _Job:
    call: Call
    done: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None
    problem: str = ""
    attempts: int = 0


class WorkerLink:
    """Calls into one worker process, one at a time."""

    def __init__(self, name: str, *, built_in: bool, limits: WorkerLimits) -> None:
        """`name` is the plugin's, or `built-in` for the worker that holds the built-in plugins."""
        self.name = name
        self.built_in = built_in
        self.state: Literal["starting", "ready", "restarting", "disabled"] = "starting"
        self.reason = ""
        self.restarts = 0
        self.identities: tuple[Identity, ...] = ()
        self.settled = trio.Event()
        """Set once the first start has succeeded or failed."""
        self._limits = limits
        self._strikes = 0
        self._again: _Job | None = None
        self._jobs_in, self._jobs_out = trio.open_memory_channel[_Job](QUEUED_CALLS)

    @property
    def disabled(self) -> bool:
        """Given up: it is not asked any more."""
        return self.state == "disabled"

    async def call(self, call: Call) -> Reply:
        """One hook call.

        Raises:
            WorkerError: disabled, busy, too slow, crashed, or the hook failed; the reason is without content.
        """
        if self.disabled:
            raise WorkerError(f"plugin worker {self.name} is disabled: {self.reason}")
        job = _Job(call)
        try:
            self._jobs_in.send_nowait(job)
        except (trio.WouldBlock, trio.BrokenResourceError):
            raise WorkerError(f"plugin worker {self.name} has {QUEUED_CALLS} calls waiting, or has stopped") from None
        with trio.move_on_after(self._limits.wait_s):
            await job.done.wait()
        if job.reply is None or job.reply.kind == "failed":
            problem = job.problem or (job.reply.reason if job.reply else f"no reply in {self._limits.wait_s:g} s")
            raise WorkerError(f"plugin worker {self.name}: {problem}")
        return job.reply

    async def run(self) -> None:
        """Keep the worker alive until cancelled, or until it is given up."""
        backoff_s = self._limits.first_backoff_s
        while not self.disabled:
            try:
                async with self._process() as stream:
                    self.identities = (await self._hello(stream)).plugins
                    self.state, self.reason = "ready", ""
                    self.settled.set()
                    backoff_s = self._limits.first_backoff_s
                    await self._serve(stream)
            except (WorkerError, OSError) as error:
                self._strike(str(error))
                self._finish_or_retry()
            self.settled.set()
            if self.disabled:
                break
            self.restarts += 1
            self.state = "restarting"
            log.warning("plugin_worker_restarts name=%s reason=%r backoff_s=%.1f", self.name, self.reason, backoff_s)
            await trio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, self._limits.last_backoff_s)
        log.error("plugin_disabled name=%s reason=%r", self.name, self.reason)
        self._jobs_out.close()

    def _strike(self, reason: str) -> None:
        self.reason = reason
        self._strikes += 1
        if self._strikes >= STRIKES and not self.built_in:
            self.state = "disabled"

    def _finish_or_retry(self) -> None:
        """Let the caller that the worker failed know, now that the strike is counted.

        A built-in worker gets the call once more, in a fresh process: the old one may have died long before.
        """
        job = self._again
        if job is not None and not (self.built_in and job.attempts == 1):
            self._again = None
            job.done.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Answer jobs until the worker breaks a rule (raises) or the plugin is disabled (returns)."""
        while not self.disabled:
            job = self._again or await self._jobs_out.receive()
            self._again, job.attempts = None, job.attempts + 1
            try:
                job.reply = await self._exchange(stream, job.call)
            except WorkerError as error:
                job.problem = error.message
                self._again = job
                raise
            if job.reply.kind == "failed":
                self._strike(job.reply.reason)
                log.warning("plugin_call_failed name=%s reason=%r strikes=%d", self.name, self.reason, self._strikes)
            else:
                self._strikes, self.reason = 0, ""
            job.done.set()

    async def _exchange(self, stream: trio.SocketStream, call: Call) -> Reply:
        wanted = "measures" if call.text is not None else "scores"
        try:
            with trio.fail_after(self._limits.call_s):
                await stream.send_all(frame(call))
                reply = await self._reply(stream)
        except trio.TooSlowError:
            raise WorkerError(f"no answer within {self._limits.call_s:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise WorkerError("the worker process ended") from None
        if reply.kind not in (wanted, "failed"):
            raise WorkerError(f"the worker said {reply.kind} where {wanted} was due")
        return reply

    async def _hello(self, stream: trio.SocketStream) -> Reply:
        try:
            with trio.fail_after(self._limits.start_s):
                reply = await self._reply(stream)
        except trio.TooSlowError:
            raise WorkerError(f"did not start within {self._limits.start_s:g} s") from None
        if reply.kind != "hello" or not reply.plugins:
            raise WorkerError(f"did not start: {reply.reason or reply.kind}")
        return reply

    async def _reply(self, stream: trio.SocketStream) -> Reply:
        try:
            data = await _at_least(stream, bytearray(), HEADER_BYTES)
            size_bytes = HEADER_BYTES + body_length(bytes(data[:HEADER_BYTES]), limit_bytes=MAX_REPLY_BYTES)
            data = await _at_least(stream, data, size_bytes)
            if len(data) > size_bytes:
                raise WorkerError("the worker spoke out of turn")
            return canonical.decode(bytes(data[HEADER_BYTES:]), Reply, limit_bytes=MAX_REPLY_BYTES)
        except (ValueError, EncodingError):
            raise WorkerError("the worker sent what is no reply") from None
        except trio.BrokenResourceError:
            raise WorkerError("the worker process ended") from None

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[trio.SocketStream]:
        """A started worker and our end of its socket; killed and reaped on the way out."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            what = (
                ["--built-in"]
                if self.built_in
                else ["--plugin", self.name, "--memory-bytes", str(self._limits.memory_bytes)]
            )
            command = [
                sys.executable,
                "-m",
                "nsllm.plugins.worker",
                "--fd",
                str(theirs.fileno()),
                "--parent",
                str(os.getpid()),
            ]
            process = await trio.lowlevel.open_process(
                command + what,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if self.built_in else subprocess.DEVNULL,
                start_new_session=True,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            )
            theirs.close()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            try:
                yield stream
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)
                    await process.wait()


async def _at_least(stream: trio.SocketStream, data: bytearray, count: int) -> bytearray:
    """`data` and what comes, until there are `count` bytes."""
    while len(data) < count:
        chunk = await stream.receive_some(65536)
        if not chunk:
            raise WorkerError("the worker process ended")
        data += chunk
    return data
