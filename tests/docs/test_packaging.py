"""pyproject.toml and constraints.txt name what the code imports, no more and no less."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

import nsllm

OWN = {"nsllm", "benchmarks", "tables", "conftest"}
IMPORTED_BY_OTHERS = {"trio-typing"}
"""libp2p brings it, and only type checkers read it."""
NOT_INSTALLED = {"sklearn": "scikit-learn", "llama_cpp": "llama-cpp-python"}
"""Modules of benchmarks whose distribution has another name."""
TOOLS = {
    "accelerate",
    "build",
    "cogapp",
    "coverage",
    "import-linter",
    "mypy",
    "pyright",
    "pytest",
    "pytest-timeout",
    "pytest-trio",
    "pytest-xdist",
    "ruff",
    "setuptools",
    "types-psutil",
}
"""Used by their commands, as plugins, or by another package (transformers spreads models with accelerate)."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    return canonical(re.match(r"[\w.-]+", requirement)[0])


@pytest.fixture(scope="module")
def distributions():
    return {module: {canonical(name) for name in names} for module, names in packages_distributions().items()}


@pytest.fixture
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture
def declared(project):
    """Distribution names: of the package itself, and of each extra."""
    extras = {extra: {name_of(line) for line in lines} for extra, lines in project["optional-dependencies"].items()}
    return {"": {name_of(line) for line in project["dependencies"]}, **extras}


def imported(paths) -> dict[str, str]:
    """Third-party top-level modules, each with a file that imports it."""
    found = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names | OWN:
                    found.setdefault(top, path.name)
    return found


def source_files(tracked, repository, *folders):
    roots = {repository / folder for folder in folders}
    return [path for path in tracked if path.suffix == ".py" and roots & set(path.parents)]


def test_what_the_package_imports_is_declared(tracked, repository, declared, distributions, tables):
    modules = imported(source_files(tracked, repository, "src", *tables.ROOMS))
    modules.pop("playwright")  # `nsllm.node.api.testing` is handed a page; it imports the type only
    known = declared[""] | declared["images"] | declared["documents"] | IMPORTED_BY_OTHERS
    owners = {module: distributions.get(module) or {module} for module in modules}  # extras need not be installed
    missing = {module: where for module, where in modules.items() if not owners[module] & known}
    assert missing == {}


def test_what_is_declared_is_imported(tracked, repository, declared, distributions, tables):
    modules = imported(source_files(tracked, repository, "src", *tables.ROOMS))
    used = set().union(*(distributions.get(module, set()) for module in modules))
    assert sorted(declared[""] - used) == []


def test_what_tests_and_examples_import_is_declared(tracked, repository, declared, distributions):
    modules = imported(source_files(tracked, repository, "tests", "docs", "examples"))
    modules = {module: where for module, where in modules.items() if not where.startswith("nsllm_plugin")}
    modules.pop("cog", None)  # made by cogapp while it runs
    for shared in (repository / "tests").glob("*.py"):
        modules.pop(shared.stem, None)
    known = declared[""] | declared["test"] | declared["images"] | IMPORTED_BY_OTHERS
    missing = {module: where for module, where in modules.items() if not distributions.get(module, set()) & known}
    assert missing == {}


def test_what_the_test_extra_declares_is_used(tracked, repository, declared, distributions):
    modules = imported(source_files(tracked, repository, "tests"))
    used = set().union(*(distributions.get(module, set()) for module in modules))
    assert sorted(declared["test"] - used - TOOLS) == []


def test_what_benchmarks_import_is_declared(tracked, repository, declared, distributions):
    modules = imported(source_files(tracked, repository, "benchmarks"))
    lines = [line for path in (repository / "benchmarks").glob("requirements*.txt") for line in path.open()]
    opponents = {name_of(line) for line in lines if "==" in line}
    known = declared[""] | declared["bench"] | opponents
    # the bench extra need not be installed where tests run: its modules are then known by name
    owners = {module: distributions.get(module) or {NOT_INSTALLED.get(module, module)} for module in modules}
    assert {module: where for module, where in modules.items() if not owners[module] & known} == {}


def test_the_extras_are_there(declared):
    assert set(declared) == {"", "test", "bench", "documents", "images", "gpus", "docs"}


def test_constraints_pin_every_dependency_and_nothing_local(repository, declared):
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.!]+", pin)] == []
    names = [canonical(pin.partition("==")[0]) for pin in pins]
    assert sorted(names) == sorted(set(names))
    assert sorted(set().union(*declared.values()) - set(names)) == []


def test_the_version_stands_once(repository, project):
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", nsllm.__version__)
    assert "## Unreleased" in (repository / "CHANGELOG.md").read_text()


def test_the_licence_is_what_the_metadata_says(repository, project):
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (repository / "LICENSE").read_text()
