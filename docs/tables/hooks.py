"""Plugin hooks, from their specifications."""

from __future__ import annotations

import inspect

from tables.pieces import joined, lowered


def hooks() -> str:
    """Every plugin hook with its arguments and what it returns."""
    from nsllm.plugins.hookspecs import HookSpecs

    parts: list[str] = []
    for name, hook in vars(HookSpecs).items():
        if name.startswith("nsllm_"):
            arguments = ", ".join(list(inspect.signature(hook).parameters)[1:])
            head, *sections = inspect.cleandoc(hook.__doc__ or "").split("\n\n")
            parts.append(f"### `{name}({arguments})`\n\n{joined(head)}")
            parts += [_section(section) for section in sections]
    return "\n\n".join(parts)


def _section(text: str) -> str:
    """A Google-style section of a docstring as Markdown."""
    title, _, body = text.partition("\n")
    if title not in {"Args:", "Returns:"}:
        return joined(text)
    entries: list[str] = []
    for line in inspect.cleandoc("\n" + body).splitlines():
        if title == "Args:" and not line.startswith(" "):
            name, _, meaning = line.partition(":")
            entries.append(f"- `{name}`:{meaning}")
        elif entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line)
    return "\n".join(entries) if title == "Args:" else f"Returns {lowered(' '.join(entries))}"
