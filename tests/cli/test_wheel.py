"""The wheel holds every room, with its data files."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("consensus", "cache_dht", "governance", "plugins", "p2p", "node", "simulations")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel that is built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in (*ROOMS, "src"):
        shutil.copytree(REPOSITORY / room, source / room, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"]
    done = subprocess.run(
        [*command, "--outdir", str(source / "out"), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (source / "out").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def sources() -> set[str]:
    """Every source and data file, named as the wheel should name it."""
    wanted = set()
    roots = [(REPOSITORY / room, f"nsllm/{room}") for room in ROOMS]
    for folder, prefix in [*roots, (REPOSITORY / "src" / "nsllm", "nsllm")]:
        for path in folder.rglob("*"):
            inside_link = any(part.is_symlink() for part in path.parents) or path.is_symlink()
            if path.is_file() and not inside_link and "__pycache__" not in path.parts:
                wanted.add(f"{prefix}/{path.relative_to(folder).as_posix()}")
    return wanted


def test_every_file_of_every_room_is_in_the_wheel(packed: set[str]) -> None:
    assert sources() - packed == set()


def test_nothing_stands_outside_the_package(packed: set[str]) -> None:
    assert {name.split("/")[0] for name in packed} - {"nsllm"} == {
        name.split("/")[0] for name in packed if ".dist-info" in name
    }


def test_what_cannot_be_missing(packed: set[str]) -> None:
    for name in (
        "nsllm/cli/up.py",
        "nsllm/node/api/static/index.html",
        "nsllm/governance/contracts/NetworkAnchor.json",
    ):
        assert name in packed
    assert any(name.endswith("entry_points.txt") for name in packed)
