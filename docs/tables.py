"""Tables that the documents carry, generated from the code so that they cannot drift.

`make docs` writes them (cog), `make test` checks them. Each function returns Markdown; `put` hands it to cog.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nsllm.errors import NsllmError

REPOSITORY: Final = Path(__file__).resolve().parent.parent
ROOMS: Final = ("consensus", "cache_dht", "governance", "plugins", "p2p", "node", "simulations")
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


def put(name: str, *arguments: str) -> None:
    """Write one of the tables below into the document that cog works on."""
    import cog  # type: ignore[import-not-found]  # cogapp makes it while it runs

    cog.outl("\n" + globals()[name](*arguments).strip("\n") + "\n")


# --- the tree ---------------------------------------------------------------------------------------------------------


def tree() -> str:
    """Every module with the first line of its docstring, room by room."""
    lines: list[str] = []
    for room in ("src/nsllm", *ROOMS):
        folder = REPOSITORY / room
        lines.append(f"\n### `{room}/`\n\n{_intent(folder / '__init__.py')}\n")
        rows = [
            (f"`{path.relative_to(folder).as_posix()}`", _intent(path))
            for path in modules(room)
            if path != folder / "__init__.py"
        ]
        lines.append(_table(("file", "what it is"), rows))
    return "\n".join(lines)


def rooms() -> str:
    """The repository's folders, one line each, as a tree."""
    base = {"src/nsllm": REPOSITORY / "src" / "nsllm"}
    intents = {name: _intent(path / "__init__.py") for name, path in base.items()}
    intents |= {room: _intent(REPOSITORY / room / "__init__.py") for room in ROOMS}
    intents |= FOLDERS
    width = max(len(name) for name in intents) + 3
    return "```\n" + "\n".join(f"{name + '/':<{width}}{text}" for name, text in intents.items()) + "\n```"


def modules(room: str) -> list[Path]:
    """Python files of a room, ascending; those of `src/nsllm` without the rooms that are links in it."""
    folder = REPOSITORY / room
    links = [path for path in folder.iterdir() if path.is_symlink()]
    return sorted(path for path in folder.rglob("*.py") if not any(link in path.parents for link in links))


# --- what the code declares -------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting of `config.toml`."""
    from nsllm.node.settings import settings_table

    return settings_table().replace("<", "&lt;")


def endpoints() -> str:
    """Every HTTP endpoint."""
    from nsllm.node.api.endpoints import endpoint_table

    return endpoint_table()


def errors() -> str:
    """Every error with its code, HTTP status where it has one, and meaning."""
    rows = [
        (f"`{kind.code}`", f"`{kind.__name__}`", room, str(getattr(kind, "status", "")), _first(inspect.getdoc(kind)))
        for room, kind in error_classes()
    ]
    return _table(("code", "error", "room", "HTTP", "meaning"), rows)


def error_classes() -> Iterator[tuple[str, type[NsllmError]]]:
    """(room, class) of every error that the project raises, in the order of the rooms."""
    from nsllm.errors import NsllmError

    names = ["errors", "merkle", *(f"{room}.errors" for room in (*ROOMS, "cli")), "node.api.bridge"]
    for name in names:
        module = importlib.import_module(f"nsllm.{name}")
        for kind in vars(module).values():
            if inspect.isclass(kind) and issubclass(kind, NsllmError) and kind.__module__ == module.__name__:
                yield (name.partition(".")[0] if "." in name else "base", kind)


def api_codes() -> str:
    """Codes of the errors that the HTTP side itself gives, with their statuses."""
    found: dict[str, set[str]] = {}
    for path in sorted((REPOSITORY / "node" / "api").glob("*.py")):
        for call in _calls(path, {"ApiError", "bad_request", "unsupported"}):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            codes = [text for keyword in call.keywords if keyword.arg == "code" for text in _texts(keyword.value)]
            if name == "ApiError":
                codes += _texts(call.args[2]) if len(call.args) > 2 else []
            else:
                codes = codes or [{"bad_request": "invalid_request"}.get(name, "unsupported_parameter")]
            status = _literal(call.args[0]) if name == "ApiError" and call.args else 400
            for code in codes if isinstance(status, int) else ():
                found.setdefault(code, set()).add(str(status))
    from nsllm.node.api.openai_errors import _HTTP_CODES

    for status, (code, _) in _HTTP_CODES.items():
        found.setdefault(code, set()).add(str(status))
    return _table(("code", "HTTP"), [(f"`{code}`", ", ".join(sorted(found[code]))) for code in sorted(found)])


def metrics() -> str:
    """Every Prometheus metric of a peer."""
    rows = [(f"`{name}`", kind, f"{meaning}{labels}") for name, kind, labels, meaning in _metrics()]
    return _table(("metric", "type", "meaning"), rows)


def _metrics() -> Iterator[tuple[str, str, str, str]]:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics import MetricWrapperBase

    from nsllm.node.api.instruments import ApiMetrics
    from nsllm.node.metrics import PeerMetrics

    registry = CollectorRegistry()
    parts = (PeerMetrics(registry), ApiMetrics(registry))
    found = [value for part in parts for value in vars(part).values() if isinstance(value, MetricWrapperBase)]
    for metric in found:
        (family,) = metric.describe()
        labels = metric._labelnames  # noqa: SLF001 - prometheus_client has no public name for them
        shown = f"; by {', '.join(f'`{label}`' for label in labels)}" if labels else ""
        yield family.name + ("_total" if family.type == "counter" else ""), family.type, shown, family.documentation


def hooks() -> str:
    """Every plugin hook with its arguments and what it returns."""
    from nsllm.plugins.hookspecs import HookSpecs

    parts: list[str] = []
    for name, hook in vars(HookSpecs).items():
        if name.startswith("nsllm_"):
            arguments = ", ".join(list(inspect.signature(hook).parameters)[1:])
            head, *sections = inspect.cleandoc(hook.__doc__ or "").split("\n\n")
            parts.append(f"### `{name}({arguments})`\n\n{_joined(head)}")
            parts += [_section(section) for section in sections]
    return "\n\n".join(parts)


def _section(text: str) -> str:
    """A Google-style section of a docstring as Markdown."""
    title, _, body = text.partition("\n")
    if title not in {"Args:", "Returns:"}:
        return _joined(text)
    entries: list[str] = []
    for line in inspect.cleandoc("\n" + body).splitlines():
        if title == "Args:" and not line.startswith(" "):
            name, _, meaning = line.partition(":")
            entries.append(f"- `{name}`:{meaning}")
        elif entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line)
    return "\n".join(entries) if title == "Args:" else f"Returns {_lowered(' '.join(entries))}"


def events() -> str:
    """Every event that a peer emits, with its fields, read from the calls of `emit`."""
    from nsllm.node.auditor import LOGGED

    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in modules("node"):
        for call in _calls(path, {"emit"}):
            if call.args and isinstance(kind := _literal(call.args[0]), str):
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
    return _table(("event", "fields", "from", "in the peer's own log"), rows)


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


# --- wire protocols ---------------------------------------------------------------------------------------------------


def protocols() -> str:
    """Every wire protocol: who may speak it, its largest frame, what it is for."""
    rows = []
    for path, module in protocol_modules():
        identifier, _, intent = _intent(path).partition(": ")
        if not identifier.startswith("`/"):
            identifier, intent = "`/nsllm/announce/1/…` (gossip)", _intent(path).removeprefix("Gossip: ")
        rows.append((identifier, _who_may(path.stem), _largest_frame(path, module), _raised(intent)))
    return _table(("protocol", "who may", "largest frame", "what it is"), rows)


def _largest_frame(path: Path, module: object) -> str:
    """The limit that the handler frames its stream with, or that of gossip."""
    found = re.search(r"(?:FramedStream|answering)\(stream, (MAX_\w+)|(MAX_GOSSIP_BYTES)", path.read_text())
    assert found is not None, f"{path} frames its stream in another way"
    return _size(getattr(module, found[1] or found[2]))


def protocol_limits() -> str:
    """Every bound of the wire protocols, by its constant."""
    rows = []
    for path, module in protocol_modules(every=True):
        documented = _attribute_docs(path)
        for name in (node for node in documented if node.isupper() and not node.startswith("_")):
            value = getattr(module, name)
            shown = _rate(value) if type(value).__name__ == "Rate" else _quantity(name, value)
            if shown is not None:
                rows.append((f"`protocols/{path.name}`", f"`{name}`", shown, documented[name] or "-"))
    return _table(("file", "bound", "value", "note"), rows)


def protocol_modules(*, every: bool = False) -> Iterator[tuple[Path, object]]:
    """(file, module) of each protocol, ascending; with `every` also of what they share."""
    for path in sorted((REPOSITORY / "p2p" / "protocols").glob("*.py")):
        if path.stem != "__init__" and (every or path.stem != "dialogue"):
            yield path, importlib.import_module(f"nsllm.p2p.protocols.{path.stem}")


def _who_may(name: str) -> str:
    """Whom the handler of a protocol answers, read from what it refuses with."""
    module = importlib.import_module(f"nsllm.p2p.protocols.{name}")
    if "validators only" in inspect.getsource(module):
        return "validators"
    strangers = getattr(module, "STRANGERS", None)
    if strangers is not None:
        return f"everybody; strangers {_rate(strangers)}"
    return "members"


def _rate(rate: object) -> str:
    return f"{getattr(rate, 'per_peer')} a minute each, {getattr(rate, 'total')} together"  # noqa: B009 - a duck


def _quantity(name: str, value: object) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if name.endswith("_BYTES"):
        return _size(int(value))
    return f"{value:g} s" if name.endswith("_S") else f"{value:g}" if value < 1_000_000 else f"{value:,}"


def _size(size_bytes: int) -> str:
    for unit, power in (("MiB", 20), ("KiB", 10)):
        if size_bytes >= 1 << power:
            return f"{size_bytes / (1 << power):.4g} {unit}"
    return f"{size_bytes} bytes"


# --- commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command of `nsllm` with its options."""
    import click

    from nsllm.cli.root import root

    parts: list[str] = []

    def describe(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                describe(found, f"{path} {name}")
            return
        arguments = " ".join(p.human_readable_name for p in command.params if isinstance(p, click.Argument))
        about = _joined((command.help or command.short_help or "").split("\f")[0])
        parts.append(f"### `{path}{' ' + arguments if arguments else ''}`\n\n{about}")
        rows = [_option(option) for option in command.params if isinstance(option, click.Option)]
        parts.append(_table(("option", "meaning"), rows))

    describe(root, "nsllm")
    return "\n\n".join(parts)


def _option(option: object) -> tuple[str, str]:
    import click

    assert isinstance(option, click.Option)
    context = click.Context(click.Command("nsllm"), max_content_width=1000, terminal_width=1000)
    spelled, meaning = option.get_help_record(context) or ("", "")
    return f"`{spelled}`", " ".join(meaning.split())


# --- receipts ---------------------------------------------------------------------------------------------------------


def steps() -> str:
    """The steps of `nsllm verify`, from the docstring that `nsllm.governance.verify` opens with."""
    from nsllm.governance import verify

    found = re.findall(r"^    (\w+) +(.+)$", verify.__doc__ or "", re.MULTILINE)
    if tuple(name for name, _ in found) != verify.STEPS:
        raise ValueError("the docstring of nsllm.governance.verify and its STEPS differ")
    return _table(("step", "what must hold"), [(f"`{name}`", meaning) for name, meaning in found])


def receipt_fields() -> str:
    """The fields of a receipt, from `nsllm.governance.receipt`."""
    import nsllm.governance.receipt as module

    path = REPOSITORY / "governance" / "receipt.py"
    rows = []
    for kind in (module.Receipt, module.PathStep, module.EntryProof, module.ReceiptAnchor):
        documented = _attribute_docs(path, kind.__name__)
        prefix = "" if kind is module.Receipt else f"{kind.__name__}."
        for name in kind.__struct_fields__:
            annotation = kind.__annotations__[name]
            annotation = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
            rows.append((f"`{prefix}{name}`", f"`{_type(annotation)}`", documented.get(name) or "-"))
    return _table(("field", "type", "meaning"), rows)


def _type(annotation: str) -> str:
    found = re.match(r"Annotated\[(.+), Meta\(.*\)\]$", annotation)
    return (found[1] if found else annotation).replace("|", "or")


# --- files that documents show ----------------------------------------------------------------------------------------


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


# --- pieces -----------------------------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _intent(path: Path) -> str:
    return _first(ast.get_docstring(ast.parse(path.read_text())))


def _first(docstring: str | None) -> str:
    return _joined((docstring or "(no docstring)").split("\n\n")[0])


def _joined(text: str) -> str:
    return " ".join(text.split())


def _raised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _calls(path: Path, names: set[str]) -> Iterator[ast.Call]:
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


def _texts(node: ast.expr) -> list[str]:
    """The strings that an expression may come to: itself, or both branches of a choice."""
    branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return [text for branch in branches if isinstance(text := _literal(branch), str)]


def _literal(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _attribute_docs(path: Path, inside: str | None = None) -> dict[str, str]:
    """Names assigned in a module (or in one of its classes) and the strings that stand below them."""
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    if inside is not None:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == inside)
    found: dict[str, str] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = _joined(str(following.value.value))
            found[node.target.id] = text
    return found
