"""Shrinking: what a failure does not need goes."""

from __future__ import annotations

import importlib
import random
from dataclasses import replace

import pytest

from nsllm.simulations.core.draw import draw
from nsllm.simulations.core.schedules import played
from nsllm.simulations.core.shrink import shrink
from nsllm.simulations.mutants.catalogue import MUTANTS
from nsllm.simulations.mutants.patched import patched


def test_only_what_matters_is_left():
    plan = next(
        p for p in (draw(seed, 7) for seed in range(500)) if p.cuts and len(p.outages) > 1 and len(p.faulty) > 1
    )
    guilty, off = plan.faulty[0], plan.outages[-1].validator

    def play(candidate):
        there = guilty in candidate.faulty and any(outage.validator == off for outage in candidate.outages)
        return f"it broke after {random.random()} s" if there and candidate.heals_s > 2 else ""

    smaller, found = shrink(plan, play)
    assert found.startswith("it broke")
    assert smaller.faulty == (guilty,)
    assert [outage.validator for outage in smaller.outages] == [off]
    assert smaller.cuts == ()
    assert (smaller.guide, smaller.loss, smaller.duplication) == ("none", 0.0, 0.0)
    assert 2 < smaller.heals_s < 4


def test_another_failure_is_not_the_same():
    plan = draw(1, 4)
    smaller, found = shrink(replace(plan, loss=0.3), lambda p: "one thing" if p.loss else "another thing")
    assert (smaller.loss, found) == (0.3, "one thing")


def test_nothing_to_shrink():
    with pytest.raises(ValueError, match="everything holds"):
        shrink(draw(1, 4), lambda _plan: "")


def test_a_real_failure_shrinks_and_still_fails():
    """A broken quorum needs nothing bad at all; what is printed fails when it is played again."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "quorum one too small")
    with patched(mutant.module, mutant.old, mutant.new):
        names = ("draw", "plan", "schedules", "shrink")
        inner = {name: importlib.import_module(f"nsllm.simulations.core.{name}") for name in names}
        play = lambda plan: inner["schedules"].played(plan)[1]  # noqa: E731
        smaller, found = inner["shrink"].shrink(inner["draw"].draw(5, 4), play)
        assert smaller.faulty == smaller.cuts == smaller.outages == ()
        again = inner["plan"].plan_from_json(inner["plan"].plan_to_json(smaller))
        assert play(again) == found
    assert played(draw(5, 4))[1] == ""
