"""The agreement under attack: nothing is violated, faults really happen, broken rules are found out."""

from __future__ import annotations

import itertools
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from nsllm.consensus import core
from nsllm.simulations.core import validator
from nsllm.simulations.core.plan import FAULTS, GUIDES, HEIGHTS, draw
from nsllm.simulations.core.schedules import replayed, run_schedules
from nsllm.simulations.core.world import World
from nsllm.simulations.errors import InvariantError

SCHEDULES = 150


@pytest.mark.parametrize("peers", [4, 5, 7])
def test_nothing_is_violated(peers):
    summary = run_schedules(peers, SCHEDULES // peers, seed=1)
    assert summary.violations == ()
    assert summary.events / summary.schedules > 150


def test_the_same_seeds_give_the_same_digest():
    assert run_schedules(4, 10, seed=3).digest == run_schedules(4, 10, seed=3).digest
    assert run_schedules(4, 10, seed=3).digest != run_schedules(4, 10, seed=4).digest
    _, first, _ = replayed(4, 5)
    _, second, violation = replayed(4, 5)
    assert (first, violation) == (second, "")


def test_plans_hold_every_fault():
    plans = [draw(seed, 4) for seed in range(400)]
    faults = Counter(fault for plan in plans for _, fault in plan.faulty)
    guides = Counter(plan.guide for plan in plans)
    assert set(faults) == set(FAULTS)
    assert set(guides) == set(GUIDES)
    assert all(len(plan.faulty) <= 1 for plan in plans)
    assert all(plan.faults() for plan in plans)
    assert min(sum(map(bool, (p.cuts for p in plans))), sum(map(bool, (p.outages for p in plans)))) > 100


def test_schedules_reach_interesting_places():
    seen = Counter()
    for seed in range(60):
        world, trace, violation = replayed(4, seed)
        assert violation == ""
        text = "\n".join(trace)
        seen["later rounds"] += any(d.certificate.round > 0 for v in world.honest for d in v.chain)
        seen["restarts"] += "power_on" in text
        seen["caught up"] += "fetch" in text
        seen["proposed again"] += " after " in text
        seen["heights"] += all(v.height >= HEIGHTS for v in world.honest)
    assert seen["heights"] == 60
    assert min(seen.values()) >= 10, seen


RULES = {
    "lock ignored": ("free = locked is None or locked.value == value\n    else:", "free = True\n    else:"),
    "valid round unproved": ("        if not proved:\n            return None\n", ""),
    "valid value forgotten": (
        "if state.valid is None:\n        return state, (*effects, BuildValue",
        "if True:\n        return state, (*effects, BuildValue",
    ),
    "invalid block voted for": (
        "vote = value if free and state.candidates[value].valid else None",
        "vote = value if free else None",
    ),
    "quorum of precommits too small": (
        'leaders("precommit", round_, state.quorum):\n            candidate',
        'leaders("precommit", round_, state.quorum - 1):\n            candidate',
    ),
    "quorum of prevotes too small": (
        'leaders("prevote", state.round, state.quorum):\n        candidate',
        'leaders("prevote", state.round, state.quorum - 1):\n        candidate',
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_found_out(rule, monkeypatch):
    old, new = RULES[rule]
    source = Path(core.__file__).read_text()
    assert source.count(old) == 1
    broken = types.ModuleType("nsllm_core_broken")
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    exec(compile(source.replace(old, new), broken.__name__, "exec"), broken.__dict__)
    for name in ("State", "Step", "Choice", "Candidate"):  # one kind of state for everybody
        setattr(broken, name, getattr(core, name))
    monkeypatch.setattr(validator.core, "step", broken.step)
    with pytest.raises(InvariantError):
        for seed in itertools.islice(itertools.count(), 1500):
            World(draw(seed, 4)).run()
