"""The tree: folders and modules, each with its intent."""

from __future__ import annotations

from typing import Final

from tables.pieces import REPOSITORY, ROOMS, intent, modules, table

FOLDERS: Final = {
    "src/nsllm/cli": "the `nsllm` command, one file a command",
    "tests": "mirrors the rooms; `tests/docs` checks the documents",
    "docs": "this documentation and its generated tables; decisions in `docs/adr`",
    "examples": "programs that the documents show and CI runs",
    "benchmarks": "where the numbers in the code come from",
    "scripts": "what `make` runs to set a machine up",
    "deploy": "container files of a peer in front of vLLM; parsed by tests, never run",
}
"""Folders of the repository that are no rooms."""


def tree() -> str:
    """Every module with the first line of its docstring, room by room."""
    lines: list[str] = []
    for room in ("src/nsllm", *ROOMS):
        folder = REPOSITORY / room
        lines.append(f"\n### `{room}/`\n\n{intent(folder / '__init__.py')}\n")
        rows = [
            (f"`{path.relative_to(folder).as_posix()}`", intent(path))
            for path in modules(room)
            if path != folder / "__init__.py"
        ]
        lines.append(table(("file", "what it is"), rows))
    return "\n".join(lines)


def rooms() -> str:
    """The repository's folders, one line each, as a tree."""
    base = {"src/nsllm": REPOSITORY / "src" / "nsllm"}
    intents = {name: intent(path / "__init__.py") for name, path in base.items()}
    intents |= {room: intent(REPOSITORY / room / "__init__.py") for room in ROOMS}
    intents |= FOLDERS
    width = max(len(name) for name in intents) + 3
    return "```\n" + "\n".join(f"{name + '/':<{width}}{text}" for name, text in intents.items()) + "\n```"
