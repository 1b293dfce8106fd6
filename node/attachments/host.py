"""The attachment worker as the peer sees it: started when the first attachment comes, asked one thing at a time.

A file that takes too long or kills the worker costs its sender an error, and the peer a new process. A worker that has
nothing to do for a while is ended: its models take 0.6 GB.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from nsllm.errors import EncodingError
from nsllm.node.attachments.attached import Attached
from nsllm.node.attachments.pins import HINT, PACKAGES, missing
from nsllm.node.attachments.port import Description
from nsllm.node.attachments.wire import (
    Broken,
    Describe,
    Described,
    FromWorker,
    Prepare,
    Prepared,
    Refused,
    ToWorker,
    peer_reader,
)
from nsllm.node.engine.protocol import frame
from nsllm.node.errors import EngineError, InvalidRequestError, OverloadedError

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

MAX_WAITING: Final = 16
KEPT: Final = 64
"""Descriptions that are remembered: the turns of a conversation bring the same picture again and again."""
ANSWER_S: Final = 60.0
"""Start and loading of the models (4 s of work) included; a page of text takes about 2 s of work."""
IDLE_S: Final = 120.0
ATTEMPTS: Final = 2
"""A worker that dies may have been at its end before; one file that kills two is to blame."""
READ_BYTES: Final = 1 << 16
LAST_WORDS_S: Final = 1.0
PASSED_ON: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "VIRTUAL_ENV", "LANG", "LC_ALL", "TZ")
"""Environment of the worker: nothing that may hold a key, and no home to read settings from."""


class _WorkerGone(Exception):  # noqa: N818 - not an error until it happens twice
    """The worker died or fell silent over a question."""


class WorkerDescriber:
    """The `Describer` port over one worker process. `run` ends it in the end; nothing runs before it is needed.

    Args:
        answer_s: seconds that one answer may take.
        idle_s: seconds without a question after which the worker is ended.
    """

    def __init__(self, *, answer_s: float = ANSWER_S, idle_s: float = IDLE_S) -> None:
        self._answer_s = answer_s
        self._idle_s = idle_s
        self._turn = trio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: trio.SocketStream | None = None
        self._used_s = 0.0
        self._known: OrderedDict[tuple[bytes, str], Description] = OrderedDict()

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, if there is one."""
        return None if self._process is None else self._process.pid

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the worker when it has been idle, and when this task is cancelled."""
        task_status.started()
        try:
            while True:
                await trio.sleep(self._idle_s / 4)
                async with self._turn:
                    if self._process is not None and trio.current_time() - self._used_s >= self._idle_s:
                        log.info("attachment_worker_idle pid=%d", self._process.pid)
                        await self._end()
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def describe(self, attached: Attached) -> Description:
        """An attachment in words; remembered, so that the same file is looked at once."""
        key = (attached.digest, attached.format)
        known = self._known.get(key)
        if known is None:
            if attached.kind == "image":
                _need(PACKAGES, attached)
            said = await self._ask(Describe(attached.format, attached.data), attached)
            assert isinstance(said, Described)
            known = self._known[key] = Description(said.text, said.how)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return known

    async def prepare(self, attached: Attached, max_bytes: int) -> bytes:
        """A picture as a PNG file of at most `max_bytes`."""
        _need(PACKAGES[:1], attached)
        said = await self._ask(Prepare(attached.format, attached.data, max_bytes), attached)
        assert isinstance(said, Prepared)
        return said.png

    async def _ask(self, message: ToWorker, attached: Attached) -> Described | Prepared:
        """One question in its turn."""
        if self._turn.statistics().tasks_waiting >= MAX_WAITING:
            raise OverloadedError(f"{MAX_WAITING} attachments wait to be looked at", hint="try again in a moment")
        async with self._turn:
            problem = ""
            for _ in range(ATTEMPTS):
                try:
                    said = await self._exchange(message)
                except _WorkerGone as gone:
                    problem = str(gone)
                    log.warning("attachment_worker_lost reason=%s format=%s", problem, attached.format)
                    continue
                match said:
                    case Refused():
                        raise InvalidRequestError(said.message, param=attached.at)
                    case Broken():
                        log.error("attachment_worker_broken reason=%s", said.message)
                        raise EngineError(f"attachments cannot be read: {said.message}", hint="run `nsllm doctor`")
                    case _:
                        return said
            raise InvalidRequestError(
                f"the {attached.format} file cannot be read: {problem}", hint="send a simpler one", param=attached.at
            )

    async def _exchange(self, message: ToWorker) -> FromWorker:
        """Question and answer; the worker is ended unless the answer came whole."""
        whole = False
        try:
            stream = self._stream or self._start()
            with trio.fail_after(self._answer_s):
                await stream.send_all(frame(message))
                said = await self._receive(stream)
            whole = True
        except trio.TooSlowError:
            raise _WorkerGone(f"it took longer than {self._answer_s:g} s") from None
        except (trio.BrokenResourceError, EncodingError):
            raise _WorkerGone(f"its reader died{await self._how()}") from None
        finally:
            if not whole:
                with trio.CancelScope(shield=True):
                    await self._end()
        self._used_s = trio.current_time()
        return said

    async def _receive(self, stream: trio.SocketStream) -> FromWorker:
        reader = peer_reader()
        while data := await stream.receive_some(READ_BYTES):
            for message in reader.feed(data):
                return message
        raise trio.BrokenResourceError

    async def _how(self) -> str:
        """How the worker ended, if by a signal."""
        if self._process is None:
            return ""
        try:
            status = await trio.to_thread.run_sync(self._process.wait, LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            return ""
        return f" ({signal.Signals(-status).name})" if status < 0 else ""

    def _start(self) -> trio.SocketStream:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "nsllm.node.attachments.worker"]
            command += ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            try:
                # Not trio's open_process: see `nsllm.node.engine.link`.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env=_environment(),
                )
            except OSError as error:
                ours.close()
                raise EngineError(
                    f"cannot start the attachment worker: {error}", hint="free memory or processes"
                ) from None
        ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        log.info("attachment_worker_started pid=%d", self._process.pid)
        return self._stream

    async def _end(self) -> None:
        """Kill and reap the worker, if there is one."""
        process, stream = self._process, self._stream
        self._process = self._stream = None
        if process is not None and stream is not None:
            process.kill()
            await trio.to_thread.run_sync(process.wait)
            await trio.aclose_forcefully(stream)


def _need(packages: tuple[str, ...], attached: Attached) -> None:
    lacking = missing(packages)
    if lacking:
        raise InvalidRequestError(
            f"this peer cannot look at pictures: {', '.join(lacking)} not installed",
            hint=f"its operator adds it with {HINT}",
            param=attached.at,
        )


def _environment() -> dict[str, str]:
    """One thread, no network, nothing of the peer's."""
    return {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OPENCV_LOG_LEVEL": "SILENT",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
