"""What the tables are made of: Markdown, docstrings, and what stands in a syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = ("consensus", "cache_dht", "governance", "plugins", "p2p", "node", "simulations")


def modules(room: str) -> list[Path]:
    """Python files of a room, ascending; those of `src/nsllm` without the rooms that are links in it."""
    folder = REPOSITORY / room
    links = [path for path in folder.iterdir() if path.is_symlink()]
    return sorted(path for path in folder.rglob("*.py") if not any(link in path.parents for link in links))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def intent(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    return first(ast.get_docstring(ast.parse(path.read_text())))


def first(docstring: str | None) -> str:
    """The first paragraph, on one line."""
    return joined((docstring or "(no docstring)").split("\n\n")[0])


def joined(text: str) -> str:
    """The same words on one line."""
    return " ".join(text.split())


def raised(text: str) -> str:
    """With a capital at the beginning."""
    return text[:1].upper() + text[1:]


def lowered(text: str) -> str:
    """Without one."""
    return text[:1].lower() + text[1:]


def calls(path: Path, names: set[str]) -> Iterator[ast.Call]:
    """Calls of functions or methods with one of these names."""
    aliases = set(names)
    parsed = ast.parse(path.read_text())
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            if name in aliases:
                yield node


def texts(node: ast.expr) -> list[str]:
    """The strings that an expression may come to: itself, or both branches of a choice."""
    branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return [text for branch in branches if isinstance(text := literal(branch), str)]


def literal(node: ast.expr) -> object:
    """The value of a constant; None of anything else."""
    return node.value if isinstance(node, ast.Constant) else None


def attribute_docs(path: Path, inside: str | None = None) -> dict[str, str]:
    """Names assigned in a module (or in one of its classes) and the strings that stand below them."""
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    if inside is not None:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == inside)
    found: dict[str, str] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = joined(str(following.value.value))
            found[node.target.id] = text
    return found
