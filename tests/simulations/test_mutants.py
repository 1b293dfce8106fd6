"""Broken rules: each is found out by every scenario that is named for it, and the sound code survives them all."""

from __future__ import annotations

import sys

import pytest

import nsllm.consensus.core
from nsllm.simulations.errors import PatchError, ScenarioError
from nsllm.simulations.mutants.catalogue import CORE, MUTANTS
from nsllm.simulations.mutants.hunt import control, hunt
from nsllm.simulations.mutants.mutant import Mutant
from nsllm.simulations.mutants.patched import patched
from nsllm.simulations.mutants.scenarios import SCENARIOS


def test_the_sound_code_survives():
    control()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_killed(mutant):
    (hunted,) = hunt([mutant])
    assert hunted.killed, hunted.found


def test_every_scenario_has_its_mutant():
    assert {name for mutant in MUTANTS for name in mutant.killers} == set(SCENARIOS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 50


def test_a_patch_leaves_no_trace():
    before = {name: module for name, module in sys.modules.items() if name.startswith("nsllm")}
    with patched(CORE, "FIRST_ROUND: Final = Round(0)", "FIRST_ROUND: Final = Round(5)"):
        from nsllm.consensus.core import FIRST_ROUND, State

        assert FIRST_ROUND == 5
        assert State is not nsllm.consensus.core.State
    after = {name: module for name, module in sys.modules.items() if name.startswith("nsllm")}
    assert before == after
    from nsllm.consensus.core import FIRST_ROUND, State

    assert FIRST_ROUND == 0
    assert State is nsllm.consensus.core.State


def test_a_mutant_that_misses_says_so():
    with pytest.raises(PatchError, match="stands 0 times"):
        list(hunt([Mutant("nowhere", CORE, "no such text", "", ("a_lock_is_respected",))]))


def test_a_harmless_mutant_survives():
    harmless = Mutant("harmless", CORE, "FIRST_ROUND: Final = Round(0)", "FIRST_ROUND: Final = Round(0 + 0)",
                      ("a_lock_is_respected", "nil_does_not_unlock"))  # fmt: skip
    (hunted,) = hunt([harmless])
    assert not hunted.killed
    assert set(hunted.found.values()) == {""}


def test_a_control_that_fails_says_so(monkeypatch):
    """A scenario that finds fault with everything would kill every mutant."""
    broken = Mutant(
        "control", CORE, "free = locked is None or locked.value == value", "free = True", ("a_lock_is_respected",)
    )
    monkeypatch.setattr("nsllm.simulations.mutants.hunt._found", lambda _mutant: {"a_lock_is_respected": "everything"})
    with pytest.raises(ScenarioError, match="does not survive a_lock_is_respected: everything"):
        control([broken])
