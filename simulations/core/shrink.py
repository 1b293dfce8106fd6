"""Shrinking: from a schedule in which something does not hold to a smaller one in which it still does not.

One thing after the other is left out or made harmless, as long as the schedule still fails in the same way. Leaving
something out changes what chance does afterwards; so each smaller plan is tried under several seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from nsllm.simulations.core.plan import Cut, Outage, Plan

OTHER_SEEDS: Final = 12
"""Seeds that a smaller plan is tried under, beside its own."""
QUICK_S: Final = 0.01
SHORTEST_S: Final = 0.5

Play = Callable[[Plan], str]
"""What did not hold in a plan's schedule; empty if everything did."""


def shrink(plan: Plan, play: Play) -> tuple[Plan, str]:
    """The smallest plan that was found, and what does not hold in it.

    Args:
        plan: something does not hold in it.
        play: plays a plan.

    Raises:
        ValueError: everything holds.
    """
    found = play(plan)
    if not found:
        raise ValueError("everything holds in this schedule: there is nothing to shrink")
    kind = _kind(found)
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(plan):
            tried = _still_fails(candidate, play, kind)
            if tried is not None:
                plan, found = tried
                smaller = True
                break
    return plan, found


def _still_fails(candidate: Plan, play: Play, kind: str) -> tuple[Plan, str] | None:
    for seed in range(candidate.seed, candidate.seed + 1 + OTHER_SEEDS):
        seeded = replace(candidate, seed=seed)
        found = play(seeded)
        if found and _kind(found) == kind:
            return seeded, found
    return None


def _kind(violation: str) -> str:
    """A violation without its numbers."""
    return re.sub(r"[\[(].*|\d+", "", violation)


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with a little less in them, what matters most first."""
    for i in range(len(plan.faulty)):
        yield replace(plan, faulty=plan.faulty[:i] + plan.faulty[i + 1 :])
    for i in range(len(plan.outages)):
        yield replace(plan, outages=plan.outages[:i] + plan.outages[i + 1 :])
    for i in range(len(plan.cuts)):
        yield replace(plan, cuts=plan.cuts[:i] + plan.cuts[i + 1 :])
    plain = (
        replace(plan, guide="none"),
        replace(plan, loss=0.0),
        replace(plan, duplication=0.0),
        replace(plan, clock_rates=(1.0,) * plan.peers),
        replace(plan, clock_offsets_s=(0.0,) * plan.peers),
        replace(plan, delay_s=QUICK_S),
    )
    yield from (candidate for candidate in plain if candidate != plan)
    if plan.heals_s > SHORTEST_S:
        yield _quicker(plan, 0.5)
        yield _quicker(plan, 0.85)
    for i, cut in enumerate(plan.cuts):
        for link in sorted(cut.links) if len(cut.links) > 1 else ():
            fewer = Cut(cut.begin_s, cut.end_s, cut.links - {link})
            yield replace(plan, cuts=(*plan.cuts[:i], fewer, *plan.cuts[i + 1 :]))


def _quicker(plan: Plan, share: float) -> Plan:
    """The plan with an earlier end of what is bad, and everything before it nearer together."""
    return replace(
        plan,
        heals_s=round(plan.heals_s * share, 3),
        cuts=tuple(Cut(round(c.begin_s * share, 3), round(c.end_s * share, 3), c.links) for c in plan.cuts),
        outages=tuple(
            Outage(o.validator, round(o.begin_s * share, 3), round(o.end_s * share, 3)) for o in plan.outages
        ),
    )
