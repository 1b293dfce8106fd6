"""Events of a peer, from the calls that emit them."""

from __future__ import annotations

import ast
from pathlib import Path

from tables.pieces import REPOSITORY, calls, literal, modules, table


def events() -> str:
    """Every event that a peer emits, with its fields, read from the calls of `emit`."""
    from nsllm.node.auditor import LOGGED

    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in modules("node"):
        for call in calls(path, {"emit"}):
            if call.args and isinstance(kind := literal(call.args[0]), str):
                fields, places = found.setdefault(kind, (set(), set()))
                fields.update(name for keyword in call.keywords for name in _names(keyword, path))
                places.add(f"`{path.relative_to(REPOSITORY).as_posix()}`")
    rows = [
        (
            f"`{kind}`",
            ", ".join(f"`{name}`" for name in sorted(fields)) or "-",
            ", ".join(sorted(places)),
            "yes" if kind in LOGGED else "-",
        )
        for kind, (fields, places) in sorted(found.items())
    ]
    return table(("event", "fields", "from", "in the peer's own log"), rows)


def _names(keyword: ast.keyword, path: Path) -> list[str]:
    """The name of a keyword argument; of `**describe(…)` the keys that the function of the same file returns."""
    if keyword.arg is not None:
        return [keyword.arg]
    assert isinstance(keyword.value, ast.Call)
    assert isinstance(keyword.value.func, ast.Name)
    called = keyword.value.func.id
    body = next(
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == called
    )
    keys = (key for node in ast.walk(body) if isinstance(node, ast.Dict) for key in node.keys)
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]
