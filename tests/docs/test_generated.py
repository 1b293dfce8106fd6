"""Generated tables are what the code says now."""

from __future__ import annotations

import subprocess
import sys


def test_cog_would_change_nothing(repository, tracked):
    with_blocks = [path for path in tracked if path.suffix == ".md" and "[[[cog" in path.read_text()]
    assert len(with_blocks) >= 9
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "-I", "docs", "--check", *map(str, with_blocks)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `make docs`:\n{done.stdout}{done.stderr}"


def test_every_table_is_used_somewhere(tables, documents):
    makers = [
        name
        for name, value in vars(tables).items()
        if callable(value) and getattr(value, "__annotations__", {}).get("return") == "str" and name[0] != "_"
    ]
    unused = [name for name in makers if f'tables.put("{name}"' not in documents]
    assert not unused


def test_no_table_has_an_empty_meaning(documents):
    assert "(no docstring)" not in documents
