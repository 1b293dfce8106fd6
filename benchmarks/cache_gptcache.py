"""GPTCache beside the policy: the same questions and embeddings in the same order, in a process of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.cache_stream import Embedded, Run
from benchmarks.cache_workload import Asked
from benchmarks.contestants.process import LAST_WORDS_BYTES, ROOT

PYTHON: Final = ROOT / ".venv-gptcache" / "bin" / "python"
THRESHOLDS: Final = (0.8, 0.9, 0.95)
"""Its default, and the one of its own table; they count the squared distance of unit vectors, see `cosine`."""
MEMORY: Final = Path("/dev/shm")
"""Where it may keep its files: its time is no figure, so it need not wait for disks."""


class Opponent:
    """A GPTCache that is under way; made by `running`."""

    def __init__(self, process: subprocess.Popen[str] | None, stream: Sequence[Asked]) -> None:
        self._process = process
        self._stream = stream

    def rows(self) -> list[dict[str, Any]]:
        """What it did at each threshold, once it has; nothing where it is not installed.

        Raises:
            SystemExit: it died; with its last words.
        """
        if self._process is None:
            print("GPTCache is left out: `make bench-setup` installs it, in .venv-gptcache", file=sys.stderr)
            return []
        said, errors = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"GPTCache ended (exit status {self._process.returncode}): {errors[-LAST_WORDS_BYTES:]}")
        return [
            {"threshold": threshold, "cosine": cosine(threshold), "exact_hits": run.exact, **run.figures()}
            for threshold, run in (
                (threshold, counted(self._stream, answers))
                for threshold, answers in zip(THRESHOLDS, json.loads(said), strict=True)
            )
        ]


@contextmanager
def running(embedded: Embedded) -> Iterator[Opponent]:
    """Start GPTCache with a stream, if it is installed; ended with the block."""
    if not os.access(PYTHON, os.X_OK):
        yield Opponent(None, embedded.stream)
        return
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        process = subprocess.Popen(
            [PYTHON, "-m", "benchmarks.contestants.cache_gptcache"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"},
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(_plan(embedded, folder)) + "\n")
            process.stdin.flush()
            yield Opponent(process, embedded.stream)
        finally:
            process.kill()
            process.communicate()


def cosine(threshold: float) -> float:
    """The cosine that its threshold asks for: `SearchDistanceEvaluation` allows a distance of 4 (1 - threshold)."""
    return round(1 - 2 * (1 - threshold), 4)


def counted(stream: Sequence[Asked], answers: Sequence[int | None]) -> Run:
    """What it served: for each question the earlier one whose answer it got, or None."""
    run = Run()
    for asked, answer in zip(stream, answers, strict=True):
        if answer is None:
            continue
        if stream[answer].text == asked.text:
            run.exact += 1
        else:
            run.hits += 1
            run.wrong += not stream[answer].same(asked)
    return run


def _plan(embedded: Embedded, folder: str) -> dict[str, Any]:
    texts = list(embedded.of)
    number = {text: at for at, text in enumerate(texts)}
    return {
        "texts": texts,
        "vectors": base64.b64encode(b"".join(embedded.of.values())).decode("ascii"),
        "stream": [number[asked.text] for asked in embedded.stream],
        "thresholds": THRESHOLDS,
        "folder": folder,
    }
