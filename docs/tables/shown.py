"""Files that documents show."""

from __future__ import annotations

import ast

from tables.pieces import REPOSITORY


def example(name: str) -> str:
    """A program of `examples/`, whole, without its docstring and future import: CI runs the file."""
    text = (REPOSITORY / "examples" / name).read_text()
    parsed = ast.parse(text)
    first = next(
        node
        for node in parsed.body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    )
    return "```python\n" + "\n".join(text.splitlines()[first.lineno - 1 :]) + "\n```"


def source(path: str, language: str = "") -> str:
    """A file of the repository, whole."""
    return f"```{language}\n{(REPOSITORY / path).read_text().strip()}\n```"
