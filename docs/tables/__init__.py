"""Tables that the documents carry, generated from the code so that they cannot drift.

`make docs` writes them (cog), `make test` checks them. Each function returns Markdown; `put` hands it to cog.
"""

from __future__ import annotations

from tables.benchmarks import benchmark_results
from tables.command_line import commands
from tables.declared import api_codes, endpoints, error_classes, errors, metrics, settings
from tables.dimensions import computation_results, separation_results, support_results
from tables.events import events
from tables.hooks import hooks
from tables.mutants import mutants
from tables.pieces import ROOMS, modules
from tables.receipts import receipt_fields, steps
from tables.shown import example, source
from tables.simulated import messages
from tables.tree import rooms, tree
from tables.wire import protocol_limits, protocol_modules, protocols

__all__ = [
    "ROOMS",
    "api_codes",
    "benchmark_results",
    "commands",
    "computation_results",
    "endpoints",
    "error_classes",
    "errors",
    "events",
    "example",
    "hooks",
    "messages",
    "metrics",
    "modules",
    "mutants",
    "protocol_limits",
    "protocol_modules",
    "protocols",
    "put",
    "receipt_fields",
    "rooms",
    "separation_results",
    "settings",
    "source",
    "steps",
    "support_results",
    "tree",
]


def put(name: str, *arguments: str) -> None:
    """Write one of the tables above into the document that cog works on."""
    import cog  # type: ignore[import-not-found]  # cogapp makes it while it runs

    cog.outl("\n" + globals()[name](*arguments).strip("\n") + "\n")
