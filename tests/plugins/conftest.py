"""Plugins for tests: modules with entry points, put on the path that workers inherit."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from textwrap import dedent

import pytest

HEAD = """
import os, time
import pluggy
hookimpl = pluggy.HookimplMarker("nsllm")

@hookimpl
def nsllm_info():
    return {"name": "NAME", "version": "1.0", "description": "for tests"}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`install(name, source)`: a distribution with one plugin module, visible to this process and to its workers."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def put(name: str, source: str, *, head: str = HEAD, distribution: str = "") -> None:
        module = f"nsllm_test_plugin_{name}"
        (tmp_path / f"{module}.py").write_text(head.replace("NAME", name) + dedent(source))
        folder = tmp_path / f"{distribution or module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or module}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[nsllm.plugins]\n{name} = {module}\n")
        importlib.invalidate_caches()
        assert module not in sys.modules

    return put
