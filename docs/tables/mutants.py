"""Mutants: which rule is broken where, and what finds it out."""

from __future__ import annotations

from tables.pieces import table


def mutants() -> str:
    """Every mutant of `nsllm sim mutants` with the scenarios that kill it; the tests see that each of them does."""
    from nsllm.simulations.mutants.catalogue import MUTANTS
    from nsllm.simulations.mutants.scenarios import SCENARIOS

    rows = []
    for mutant in MUTANTS:
        file = mutant.module.removeprefix("nsllm.").replace(".", "/") + ".py"
        killers = [
            f"{name.replace('_', ' ')} (`{SCENARIOS[name].__module__.rpartition('.')[2]}`)" for name in mutant.killers
        ]
        rows.append((mutant.name, f"`{file}`", "; ".join(killers)))
    return table(("broken rule", "in", "found out by"), rows)
