"""Rules of the house that hold for every file of the repository."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

MAX_LINES = 500
MAX_FILE_BYTES = 512 * 1024
TEXT = {"", ".py", ".md", ".toml", ".txt", ".json", ".js", ".css", ".html", ".svg", ".sol", ".sh", ".service", ".yaml"}
LEFT_OVER = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")
WORKPLACE = (
    r"(?<![\w.])/(?:work|root|home)/\w",
    r"\bissues? #?\d",
    r"[\s(]#\d+\b(?!;)",
    r"\b(?:DESIGN|FACTS|STYLE|BRIEF)\.md\b",
)
"""Paths of a workplace, numbers of a tracker and documents that do not belong to the project."""


@pytest.fixture
def python(tracked):
    return [path for path in tracked if path.suffix == ".py"]


def texts(tracked):
    """(path, text) of what people wrote; licences and lock files are others' words."""
    for path in tracked:
        if path.suffix in TEXT and path.name not in {"LICENSE", "package-lock.json", "NetworkAnchor.json"}:
            yield path, path.read_text()


def test_every_module_has_a_docstring(python):
    assert [path for path in python if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_nothing_is_left_over(tracked):
    found = [(path, word) for path, text in texts(tracked) for word in LEFT_OVER if re.search(rf"\b{word}\b", text)]
    assert found == []


def test_nothing_speaks_of_the_workplace(tracked):
    found = []
    for path, text in texts(tracked):
        if path.name == "test_house.py":
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            found += [(path.name, number, line.strip()) for pattern in WORKPLACE if re.search(pattern, line)]
    assert found == []


def test_files_of_the_rooms_are_short(python, repository, tables):
    rooms = {repository / room for room in (*tables.ROOMS, "src")}
    long = {
        path.relative_to(repository).as_posix(): lines
        for path in python
        if rooms & set(path.parents) and (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_no_file_is_large(tracked):
    assert [path for path in tracked if path.stat().st_size > MAX_FILE_BYTES] == []


def test_nothing_that_is_built_or_ignored_is_tracked(repository):
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""


def test_tests_are_neither_skipped_nor_expected_to_fail(python, repository):
    tests = [path for path in python if (repository / "tests") in path.parents and path.name != "test_house.py"]
    for path in tests:
        assert not re.search(r"pytest\.(?:skip|xfail|mark\.(?:skip|xfail))", path.read_text()), path


def test_scripts_can_be_run(repository):
    for name in (".ci/run", "scripts/setup.sh"):
        path = repository / name
        assert path.stat().st_mode & 0o111, name
        assert path.read_text().startswith("#!"), name


def test_shell_scripts_parse(repository):
    for shell, name in (("bash", ".ci/run"), ("sh", "scripts/setup.sh")):
        done = subprocess.run([shell, "-n", repository / name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
