"""What the code declares: settings, endpoints, errors and metrics."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tables.pieces import REPOSITORY, ROOMS, calls, first, literal, table, texts

if TYPE_CHECKING:
    from prometheus_client import Metric

    from nsllm.errors import NsllmError


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
        (f"`{kind.code}`", f"`{kind.__name__}`", room, str(getattr(kind, "status", "")), first(inspect.getdoc(kind)))
        for room, kind in error_classes()
    ]
    return table(("code", "error", "room", "HTTP", "meaning"), rows)


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
        for call in calls(path, {"ApiError", "bad_request", "unsupported"}):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            codes = [text for keyword in call.keywords if keyword.arg == "code" for text in texts(keyword.value)]
            if name == "ApiError":
                codes += texts(call.args[2]) if len(call.args) > 2 else []
            else:
                codes = codes or [{"bad_request": "invalid_request"}.get(name, "unsupported_parameter")]
            status = literal(call.args[0]) if name == "ApiError" and call.args else 400
            for code in codes if isinstance(status, int) else ():
                found.setdefault(code, set()).add(str(status))
    from nsllm.node.api.openai_errors import _HTTP_CODES

    for status, (code, _) in _HTTP_CODES.items():
        found.setdefault(code, set()).add(str(status))
    return table(("code", "HTTP"), [(f"`{code}`", ", ".join(sorted(found[code]))) for code in sorted(found)])


def metrics() -> str:
    """Every Prometheus metric of a peer."""
    rows = [(f"`{name}`", kind, f"{meaning}{labels}") for name, kind, labels, meaning in _metrics()]
    return table(("metric", "type", "meaning"), rows)


def _metrics() -> Iterator[tuple[str, str, str, str]]:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics import MetricWrapperBase

    from nsllm.node.api.instruments import ApiMetrics
    from nsllm.node.engine_metrics import EngineMetrics
    from nsllm.node.metrics import CountedElsewhere, PeerMetrics
    from nsllm.node.traffic_metrics import TrafficMetrics

    collectors = (EngineMetrics, TrafficMetrics, CountedElsewhere)
    for family in (each for kind in collectors for each in kind(CollectorRegistry()).describe()):
        yield _row(family, family._labelnames)  # noqa: SLF001 - prometheus_client has no public name for them
    registry = CollectorRegistry()
    parts = (PeerMetrics(registry), ApiMetrics(registry))
    found = [value for part in parts for value in vars(part).values() if isinstance(value, MetricWrapperBase)]
    for metric in found:
        (family,) = metric.describe()
        yield _row(family, metric._labelnames)  # noqa: SLF001 - the same


def _row(family: Metric, labels: Sequence[str]) -> tuple[str, str, str, str]:
    shown = f"; by {', '.join(f'`{label}`' for label in labels)}" if labels else ""
    return family.name + ("_total" if family.type == "counter" else ""), family.type, shown, family.documentation
