"""What the documents say, taken apart for tests."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode:  # an unpacked archive has no index
        return sorted(path for path in REPOSITORY.rglob("*") if path.is_file() and not ignored(path))
    names = listed.stdout.decode().split("\0")[:-1]
    return [REPOSITORY / name for name in names if (REPOSITORY / name).is_file()]


def ignored(path: Path) -> bool:
    parts = path.relative_to(REPOSITORY).parts
    return any(part.startswith(".") or part in {"__pycache__", "node_modules", "nsllm.egg-info"} for part in parts)


def markdown() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def blocks(language: str) -> list[Block]:
    found = []
    for path in markdown():
        name = path.relative_to(REPOSITORY).as_posix()
        lines = path.read_text().splitlines()
        opened: tuple[int, str] | None = None
        for number, line in enumerate(lines, start=1):
            fence = re.match(r"^```(\w*)$", line)
            if fence is None:
                continue
            if opened is None:
                opened = (number, fence[1])
            else:
                text = "\n".join(lines[opened[0] : number - 1])
                found.append(Block(name, opened[0] + 1, opened[1], text))
                opened = None
        assert opened is None, f"{name}:{opened}: a fence that does not end"
    return [block for block in found if block.language == language]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sources = {
        "shell_block": lambda: blocks("sh"),
        "python_block": lambda: blocks("python"),
        "toml_block": lambda: blocks("toml"),
        "document": markdown,
    }
    for name, make in sources.items():
        if name in metafunc.fixturenames:
            found = make()
            names = [str(item.relative_to(REPOSITORY) if isinstance(item, Path) else item) for item in found]
            metafunc.parametrize(name, found, ids=names)


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def tracked() -> list[Path]:
    return tracked_files()


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch):
    """`docs/tables`, as cog imports it."""
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    import tables

    yield tables
    for name in [name for name in sys.modules if name.partition(".")[0] == "tables"]:
        del sys.modules[name]


@pytest.fixture
def documents() -> str:
    """Everything that README and docs say, in one text."""
    return "\n".join(path.read_text() for path in markdown())
