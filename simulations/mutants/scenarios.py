"""Scenarios by name: functions that return if a rule holds, and raise `InvariantError` if it does not."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Final

from nsllm.simulations.errors import InvariantError
from nsllm.simulations.mutants import absence, batches, epochs, guided, proofs, restart, rules, scores, snapshots

Scenario = Callable[[], None]


def _of(module: ModuleType) -> dict[str, Scenario]:
    own = {name: thing for name, thing in vars(module).items() if callable(thing) and not name.startswith("_")}
    return {name: thing for name, thing in own.items() if getattr(thing, "__module__", "") == module.__name__}


SCENARIOS: Final[dict[str, Scenario]] = {
    name: scenario
    for module in (guided, rules, restart, proofs, epochs, absence, scores, batches, snapshots)
    for name, scenario in _of(module).items()
}


def found_by(name: str) -> str:
    """What a scenario found; empty if everything holds."""
    try:
        SCENARIOS[name]()
    except InvariantError as error:
        return str(error)
    return ""
