"""A mutant: one replaced text of one module, and the scenarios that find it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule, broken."""

    name: str
    module: str
    old: str
    """Stands in the module's source exactly once."""
    new: str
    killers: tuple[str, ...]
    """Scenarios that notice, see `nsllm.simulations.mutants.scenarios`."""
