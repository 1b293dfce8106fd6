"""A contestant as the conductor sees it: a process that is asked for one thing at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
LAST_WORDS_BYTES: Final = 2000


class Process:
    """A contestant; made by `started`."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self.about: dict[str, Any] = {}
        self._process = process
        self._log = log

    def ask(self, do: str, **details: object) -> dict[str, Any]:
        """What it answers.

        Raises:
            SystemExit: it died; with its last words.
        """
        self.tell(do, **details)
        return self.hear()

    def tell(self, do: str, **details: object) -> None:
        """Give it a task."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `hear` says why

    def hear(self) -> dict[str, Any]:
        """Wait for its answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            said = self._log.read_text("utf-8", "replace")[-LAST_WORDS_BYTES:]
            raise SystemExit(f"{self.name} ended (exit status {status}): {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def started(
    name: str, command: Sequence[str], texts: Sequence[Sequence[int]], folder: Path, waiting: str = ""
) -> Iterator[Process]:
    """Start a contestant, which begins to load its model; `hear` tells when it has. Ended with the block.

    Args:
        name: what it is called.
        command: that starts it.
        texts: what its tasks read.
        folder: for its log.
        waiting: how OpenMP's threads wait for each other: `active` in a loop, `passive` asleep, or as they like.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            | ({"OMP_WAIT_POLICY": waiting} if waiting else {}),
        )
    try:
        contestant = Process(name, process, log)
        contestant.tell("texts", texts=[list(text) for text in texts])
        yield contestant
    finally:
        process.kill()
        process.wait()


def planned(
    module: str, name: str, plan: Mapping[str, Any], folder: Path, processes: list[subprocess.Popen[str]]
) -> Process:
    """Start a module that reads one plan and then tasks; its log stands in `folder`, it joins `processes`."""
    log = folder / f"{name}.log"
    with log.open("wb") as errors:
        popen = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=os.environ,
        )
    processes.append(popen)
    assert popen.stdin is not None
    popen.stdin.write(json.dumps(plan) + "\n")
    popen.stdin.flush()
    return Process(name, popen, log)
