"""The agreement under attack: nothing is violated, faults really happen, broken rules are found out."""

from __future__ import annotations

from collections import Counter

import pytest

from nsllm.simulations.core.draw import AIMS, HABITS, WILD_S, draw
from nsllm.simulations.core.plan import HEIGHTS, plan_from_json, plan_to_json
from nsllm.simulations.core.schedules import Series, played, run_schedules
from nsllm.simulations.errors import PlanError

SERIES = [
    *((4, seed, 1500) for seed in (1, 1501, 3001, 4501)),
    *((peers, 1, schedules) for peers, schedules in ((5, 500), (6, 400), (7, 600), (10, 40), (13, 10))),
]
"""Peers, first seed, schedules: about a minute of one core, in parts that several can share."""


@pytest.mark.parametrize(("peers", "seed", "schedules"), SERIES)
def test_nothing_is_violated(peers, seed, schedules):
    summary = run_schedules(Series(peers, seed, schedules))
    assert summary.violations == ()
    assert summary.events / summary.schedules > 150
    assert summary.broken == 0


def test_nothing_is_violated_where_nobody_may_be_byzantine():
    for peers in (2, 3):
        assert run_schedules(Series(peers, 1, 50)).violations == ()


@pytest.mark.parametrize(("peers", "byzantine", "schedules"), [(4, 2, 400), (5, 3, 60), (6, 2, 60), (7, 3, 60)])
def test_who_breaks_agreement_is_named(peers, byzantine, schedules):
    """More than f conspire: agreement breaks, and then f+1 of them are named, and nobody else."""
    summary = run_schedules(Series(peers, 1, schedules, byzantine))
    assert summary.violations == ()
    assert summary.broken > schedules / 3
    habits = Counter()
    for seed in range(1, 30):
        world, violation = played(draw(seed, peers, byzantine))
        assert violation == ""
        if world.promises.broken is not None:
            assert len(world.named) > (peers - 1) // 3
            habits[world.plan.faulty[0][1]] += 1
    assert min(habits["two-faced"], habits["schemer"]) > 0, habits


def test_the_same_seeds_give_the_same_digest():
    series = Series(4, 3, 60)
    alone = run_schedules(series)
    shared = run_schedules(series, jobs=2)
    assert (alone.digest, alone.events) == (shared.digest, shared.events)
    assert run_schedules(Series(4, 4, 60)).digest != alone.digest
    first, second = [], []
    assert played(draw(5, 4), trace=first)[1] == played(draw(5, 4), trace=second)[1] == ""
    assert first == second


def test_plans_hold_every_fault():
    plans = [draw(seed, 4) for seed in range(600)]
    faults = Counter(fault for plan in plans for _, fault in plan.faulty)
    guides = Counter(plan.guide for plan in plans)
    assert set(faults) == set(HABITS)
    assert set(guides) == set(AIMS)
    assert all(len(plan.faulty) <= 1 for plan in plans)
    wild = [sum(abs(offset) == WILD_S for offset in plan.clock_offsets_s) for plan in plans]
    assert all(len(plan.faulty) + count <= 1 for plan, count in zip(plans, wild, strict=True))
    assert all(plan.faulty or plan.cuts or plan.outages or plan.loss or plan.duplication or plan.guide != "none"
               for plan in plans)  # fmt: skip
    one_way = [cut for plan in plans for cut in plan.cuts if any((b, a) not in cut.links for a, b in cut.links)]
    rates = [plan for plan in plans if set(plan.clock_rates) != {1.0}]
    seen = [[p for p in plans if p.cuts], [p for p in plans if p.outages], [p for p in plans if p.loss], one_way, rates]
    assert min(map(len, seen)) > 100
    assert sum(wild) > 10


def test_plans_survive_json():
    for seed in range(40):
        plan = draw(seed, 4)
        assert plan_from_json(plan_to_json(plan)) == plan
    said = plan_to_json(draw(1, 4))
    for wrong in ["", "{}", said.replace('"peers":4', '"peers":3'), said.replace('"peers":4', '"peers":99')]:
        with pytest.raises(PlanError):
            plan_from_json(wrong)
    with pytest.raises(PlanError, match="at most 2"):
        draw(1, 4, 3)


def test_schedules_reach_interesting_places():
    seen = Counter()
    for seed in range(80):
        trace = []
        world, violation = played(draw(seed, 4), trace=trace)
        assert violation == ""
        text = "\n".join(trace)
        seen["later rounds"] += any(d.certificate.round > 0 for v in world.honest for d in v.chain)
        seen["restarts"] += "power_on" in text
        seen["caught up"] += "fetch" in text
        seen["proposed again"] += " after " in text
        seen["heights"] += all(v.height >= HEIGHTS for v in world.honest)
    assert seen["heights"] == 80
    assert min(seen.values()) >= 10, seen


def test_what_a_censor_leaves_out_is_decided_one_height_later():
    plans = [plan for plan in (draw(seed, 4) for seed in range(500)) if "censor" in dict(plan.faulty).values()]
    worlds = [played(plan) for plan in plans]
    assert not any(violation for _, violation in worlds)
    assert sum(all(v.height > HEIGHTS for v in world.honest) for world, _ in worlds) >= 3
