"""A contestant as the conductor sees it: a process that is asked for one thing at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]
LAST_WORDS_BYTES: Final = 2000


@dataclass(frozen=True)
class Child:
    """A process that another one forked, as far as `Process` looks at it."""

    stdin: IO[str]
    stdout: IO[str]

    def wait(self) -> str:
        """Nobody but its parent knows its status."""
        return "unknown"


class Process:
    """A contestant; made by `started`, `planned` or `forked`."""

    def __init__(self, name: str, process: subprocess.Popen[str] | Child, log: Path) -> None:
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

    def give(self, plan: Mapping[str, Any]) -> None:
        """Its plan, where it waits for one."""
        self._say(plan)

    def tell(self, do: str, **details: object) -> None:
        """Give it a task."""
        self._say({"do": do, **details})

    def _say(self, words: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
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


def forked(
    module: str, count: int, folder: Path, processes: list[subprocess.Popen[str]], python: str = sys.executable
) -> list[Process]:
    """So many processes of a module that is imported once; each waits for its plan, a line of JSON.

    Args:
        module: whose `main` they run.
        count: how many.
        folder: for their logs.
        processes: their parent joins these.
        python: of the environment that has what the module imports.
    """
    made: list[Process] = []
    pipes: list[str] = []
    theirs: list[int] = []
    for number in range(count):
        name = f"{module.rpartition('.')[2]}-{number}"
        inward, write = os.pipe()
        read, outward = os.pipe()
        child = Child(os.fdopen(write, "w"), os.fdopen(read))
        log = folder / f"{name}.log"
        log.touch()
        made.append(Process(name, child, log))
        pipes += [str(inward), str(outward), str(log)]
        theirs += [inward, outward]
    command = [python, "-m", "benchmarks.contestants.forked", module, *pipes]
    with (folder / f"{module}.log").open("wb") as errors:
        processes.append(
            subprocess.Popen(command, pass_fds=theirs, stderr=errors, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)
        )
    for end in theirs:
        os.close(end)
    return made
