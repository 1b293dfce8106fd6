"""A plugin worker: `python -m nsllm.plugins.worker --fd N --parent PID (--built-in | --plugin NAME)`.

It loads its plugins, says hello, then answers one call at a time over an inherited socket, until the peer closes it or
dies. Third-party code runs here and nowhere else. Nothing that a plugin raises is passed on as text: only its type and
place, because messages may quote what users wrote.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.errors import EncodingError
from nsllm.plugins.builtin import load_built_in
from nsllm.plugins.errors import HookResultError, PluginMissingError
from nsllm.plugins.hookspecs import ENTRY_POINT_GROUP
from nsllm.plugins.loaded import LoadedPlugin
from nsllm.plugins.wire import (
    HEADER_BYTES,
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    Call,
    Dimension,
    Reply,
    body_length,
    frame,
)

PARENT_POLL_S: Final = 0.5
"""How soon a worker that is stuck in a plugin notices that its peer has died."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the peer goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="nsllm.plugins.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, default=0, help="address space limit; 0 for none")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--built-in", action="store_true")
    which.add_argument("--plugin")
    options = parser.parse_args(arguments)
    threading.Thread(target=_exit_with_parent, args=(options.parent,), daemon=True).start()
    if options.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (options.memory_bytes, options.memory_bytes))
    with socket.socket(fileno=options.fd) as link:
        try:
            plugins = load_built_in() if options.built_in else (load_installed(options.plugin),)
        except Exception as error:  # noqa: BLE001 - the supervisor of third-party code
            _send(link, Reply(kind="failed", reason=_place(error)))
            return 1
        _send(link, Reply(kind="hello", plugins=tuple(plugin.identity for plugin in plugins)))
        while (call := _receive(link)) is not None:
            _send(link, answer(plugins, call))
    return 0


def load_installed(name: str) -> LoadedPlugin:
    """The plugin that an entry point of that name offers.

    Raises:
        PluginMissingError: no distribution offers it, or more than one does.
    """
    found = tuple(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name))
    if len(found) != 1:
        raise PluginMissingError(f"{len(found)} installed distributions offer plugin {name}, expected one")
    return LoadedPlugin(found[0].load(), name=name, built_in=False)


def answer(plugins: Sequence[LoadedPlugin], call: Call) -> Reply:
    """One hook of every plugin in this worker; if one fails, the call fails."""
    try:
        if call.text is not None:
            item = call.text
            return Reply(kind="measures", measures=tuple(m for plugin in plugins for m in plugin.validate(item)))
        if call.answer is not None:
            asked = call.answer
            scores = [pair for plugin in plugins for pair in plugin.score(asked).items()]
            return Reply(kind="scores", scores=tuple(Dimension(name=name, ppm=ppm) for name, ppm in scores))
    except Exception as error:  # noqa: BLE001 - the supervisor of third-party code
        return Reply(kind="failed", reason=_place(error))
    return Reply(kind="failed", reason="a call with neither text nor answer")


def _place(error: Exception) -> str:
    """Type and place of an error; our own errors also say what they say, for they quote no content."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    own = f": {error.message}" if isinstance(error, HookResultError | PluginMissingError) else ""
    return f"{type(error).__name__}{own or where}"[:300]


def _receive(link: socket.socket) -> Call | None:
    """The next call; None once the peer has closed the link or sent what is no call."""
    header = _exactly(link, HEADER_BYTES)
    try:
        body = _exactly(link, body_length(header, limit_bytes=MAX_REQUEST_BYTES)) if header else b""
        return canonical.decode(body, Call, limit_bytes=MAX_REQUEST_BYTES) if body else None
    except (ValueError, EncodingError):
        return None


def _exactly(link: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        chunk = link.recv(min(65536, count - len(parts)))
        if not chunk:
            return b""
        parts += chunk
    return bytes(parts)


def _send(link: socket.socket, reply: Reply) -> None:
    data = frame(reply)
    if len(data) > MAX_REPLY_BYTES:
        data = frame(Reply(kind="failed", reason=f"reply of {len(data)} bytes, the limit is {MAX_REPLY_BYTES}"))
    link.sendall(data)


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
