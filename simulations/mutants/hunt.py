"""The hunt: every mutant meets its scenarios, and so does the sound code, which must survive them all."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.mutants.catalogue import MUTANTS
from nsllm.simulations.mutants.mutant import Mutant
from nsllm.simulations.mutants.patched import patched


@dataclass(frozen=True, slots=True)
class Hunted:
    """What became of one mutant."""

    mutant: Mutant
    found: dict[str, str]
    """What each of its scenarios found; empty where everything held."""
    seconds: float

    @property
    def killed(self) -> bool:
        """By all scenarios that are named for it."""
        return all(self.found.values())


def control(mutants: Sequence[Mutant] = MUTANTS) -> None:
    """Play every scenario of `mutants` with the sound code, imported in the same way as a mutant.

    Raises:
        ScenarioError: one of them finds fault with it.
    """
    names = sorted({name for mutant in mutants for name in mutant.killers})
    module = mutants[0].module
    found = _found(Mutant("none", module, mutants[0].old, mutants[0].old, tuple(names)))
    wrong = [f"{name}: {what}" for name, what in found.items() if what]
    if wrong:
        raise ScenarioError(f"the sound code does not survive {'; '.join(wrong)}")


def hunt(mutants: Sequence[Mutant] = MUTANTS) -> Iterator[Hunted]:
    """Each mutant with all its scenarios, one after the other.

    Raises:
        PatchError: a mutant's text does not stand in the code any more.
    """
    for mutant in mutants:
        began = time.monotonic()
        found = _found(mutant)
        yield Hunted(mutant, found, time.monotonic() - began)


def _found(mutant: Mutant) -> dict[str, str]:
    with patched(mutant.module, mutant.old, mutant.new), _quiet():
        found_by: Callable[[str], str] = importlib.import_module("nsllm.simulations.mutants.scenarios").found_by
        return {name: found_by(name) for name in mutant.killers}


@contextmanager
def _quiet() -> Iterator[None]:
    """What broken code logs is of no interest."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
