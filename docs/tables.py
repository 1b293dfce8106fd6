"""Tables that the documents carry, generated from the code so that they cannot drift.

`make docs` writes them (cog), `make test` checks them. Each function returns Markdown.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("consensus", "cache_dht", "governance", "plugins", "p2p", "node", "simulations")


def tree() -> str:
    """Every module with the first line of its docstring, room by room."""
    lines: list[str] = []
    for room in ("src/nsllm", *ROOMS):
        folder = REPOSITORY / room
        lines.append(f"\n### `{room}/`\n\n{_intent(folder / '__init__.py')}\n\n| file | what it is |\n|---|---|")
        for path in sorted(_modules(folder)):
            name = path.relative_to(folder).as_posix()
            if name != "__init__.py":
                lines.append(f"| `{name}` | {_intent(path)} |")
    return "\n".join(lines) + "\n"


def errors() -> str:
    """Every error with its code and meaning."""
    lines = ["| error | code | room | meaning |", "|---|---|---|---|"]
    for module in ("nsllm.errors", *(f"nsllm.{room}.errors" for room in ("consensus", "cache_dht", "governance", "p2p", "node"))):
        loaded = importlib.import_module(module)
        for name, kind in sorted(vars(loaded).items()):
            if inspect.isclass(kind) and kind.__module__ == module and hasattr(kind, "code"):
                room = module.split(".")[1] if module.count(".") > 1 else "base"
                lines.append(f"| `{name}` | `{kind.code}` | {room} | {(kind.__doc__ or '').splitlines()[0]} |")
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every setting of `config.toml`."""
    from nsllm.node.settings import settings_table

    return settings_table()


def endpoints() -> str:
    """Every HTTP endpoint."""
    from nsllm.node.api.endpoints import endpoints_table

    return endpoints_table()


def metrics() -> str:
    """Every Prometheus metric."""
    from nsllm.node.api.metrics import metrics_table

    return metrics_table()


def hooks() -> str:
    """Every plugin hook."""
    from nsllm.plugins.hookspecs import hooks_table

    return hooks_table()


def _modules(folder: Path) -> list[Path]:
    if folder.name == "nsllm":  # rooms are links in here
        links = {path for path in folder.iterdir() if path.is_symlink()}
        return [path for path in folder.rglob("*.py") if not any(link in path.parents for link in links)]
    return list(folder.rglob("*.py"))


def _intent(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or "(no docstring)"
    return docstring.split("\n\n")[0].replace("\n", " ")
