"""Python in the documents, in the examples and in docstrings runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
ROOMS = ("consensus", "cache_dht", "governance", "plugins", "p2p", "node", "simulations", "src/nsllm")


def with_doctests() -> list[str]:
    """Modules under `src/nsllm` (the rooms through their links) that have doctests."""
    found = []
    for room in ROOMS:
        folder = REPOSITORY / room
        for path in sorted(folder.rglob("*.py")):
            through_link = any(part.is_symlink() for part in path.parents)
            if not through_link and ">>> " in path.read_text():
                parts = path.relative_to(folder).with_suffix("").parts
                found.append(".".join(("nsllm", *(() if room == "src/nsllm" else (room,)), *parts)))
    return found


def test_python_blocks_compile_and_those_without_a_file_run(python_block):
    ast.parse(python_block.text)
    files = [*EXAMPLES, *(REPOSITORY / "examples").glob("*/*.py")]
    if not any(python_block.text.strip() in path.read_text() for path in files):
        exec(compile(python_block.text, str(python_block), "exec"), {})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_shown_by_a_document_and_says_how_to_run_it(path, documents):
    assert f'tables.put("example", "{path.name}")' in documents
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(path.read_text())) or "")


def test_the_simulation_example_prints_what_it_promises():
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "simulate.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True False"


@pytest.mark.parametrize("name", with_doctests())
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_doctests_are_found_in_several_rooms():
    assert len({name.split(".")[1] for name in with_doctests()}) >= 6
