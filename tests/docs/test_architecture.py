"""ARCHITECTURE.md draws the tree and the import contract as they are."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

BASE = {
    "errors",
    "ids",
    "canonical",
    "crypto",
    "merkle",
    "embedding",
    "passages",
    "record",
    "clock",
    "content",
    "files",
    "offload",
    "databases",
}


@pytest.fixture
def layers(repository):
    """The contract's layers, outermost first, each a set of modules."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = settings["contracts"]
    assert contract["exhaustive"]
    return [set(layer.split(" | ")) for layer in contract["layers"]]


@pytest.fixture
def drawn(repository, tables):
    """The rows of the drawing that name rooms, from the top, each a set."""
    text = (repository / "ARCHITECTURE.md").read_text()
    picture = re.search(r"## Rooms.*?```\n(.*?)```", text, re.DOTALL)[1]
    known = {*tables.ROOMS, "cli"}
    rows = []
    for line in picture.splitlines():
        # What stands two spaces right of the names is their description.
        names = [word for word in re.split(r"\s{2,}", line.strip()) if word in known]
        if names:
            rows.append(set(names))
    return rows


def test_the_drawing_has_the_layers_of_the_contract(layers, drawn, tables):
    rooms = {*tables.ROOMS, "cli"}
    assert drawn == [layer & rooms for layer in layers if layer & rooms]


def test_every_room_stands_in_the_contract_and_as_a_link(layers, repository, tables):
    links = {path.name for path in (repository / "src" / "nsllm").iterdir() if path.is_symlink()}
    assert links == set(tables.ROOMS)
    assert set().union(*layers) == {*tables.ROOMS, *BASE, "cli", "__main__"}
    for room in tables.ROOMS:
        target = (repository / "src" / "nsllm" / room).readlink()
        assert target.as_posix() == f"../../{room}"


def test_every_file_of_the_rooms_stands_in_the_tree(repository, tables):
    text = (repository / "ARCHITECTURE.md").read_text()
    for room in ("src/nsllm", *tables.ROOMS):
        section = text.partition(f"### `{room}/`\n")[2].partition("\n### ")[0]
        assert section, room
        listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE))
        there = {path.relative_to(repository / room).as_posix() for path in tables.modules(room)}
        assert listed == there - {"__init__.py"}


def test_files_that_the_text_names_exist(repository):
    text = (repository / "ARCHITECTURE.md").read_text().partition("## The tree")[0]
    named = re.findall(r"`((?:node|p2p|consensus|governance|cache_dht|plugins|simulations)/[\w/]+\.py)`", text)
    assert named
    assert [name for name in named if not (repository / name).is_file()] == []


def test_the_import_contract_holds(repository):
    # Without the cache, which may remember another state of the files.
    program = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout
