"""Wire protocols and their bounds."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from tables.pieces import REPOSITORY, attribute_docs, intent, raised, table


def protocols() -> str:
    """Every wire protocol: who may speak it, its largest frame, what it is for."""
    rows = []
    for path, module in protocol_modules():
        identifier, _, about = intent(path).partition(": ")
        if not identifier.startswith("`/"):
            identifier, about = "`/nsllm/announce/1/…` (gossip)", intent(path).removeprefix("Gossip: ")
        rows.append((identifier, _who_may(path.stem), _largest_frame(path, module), raised(about)))
    return table(("protocol", "who may", "largest frame", "what it is"), rows)


def _largest_frame(path: Path, module: object) -> str:
    """The limit that the handler frames its stream with, or that of gossip."""
    found = re.search(r"(?:FramedStream|answering|questions)\(stream, (MAX_\w+)|(MAX_GOSSIP_BYTES)", path.read_text())
    assert found is not None, f"{path} frames its stream in another way"
    return _size(getattr(module, found[1] or found[2]))


def protocol_limits() -> str:
    """Every bound of the wire protocols, by its constant."""
    rows = []
    for path, module in protocol_modules(every=True):
        documented = attribute_docs(path)
        for name in (node for node in documented if node.isupper() and not node.startswith("_")):
            value = getattr(module, name)
            shown = _rate(value) if type(value).__name__ == "Rate" else _quantity(name, value)
            if shown is not None:
                rows.append((f"`protocols/{path.name}`", f"`{name}`", shown, documented[name] or "-"))
    return table(("file", "bound", "value", "note"), rows)


def protocol_modules(*, every: bool = False) -> Iterator[tuple[Path, object]]:
    """(file, module) of each protocol, ascending; with `every` also of what they share."""
    for path in sorted((REPOSITORY / "p2p" / "protocols").glob("*.py")):
        if path.stem != "__init__" and (every or path.stem not in {"dialogue", "lines"}):
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
