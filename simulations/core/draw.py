"""From a seed to a plan: which faults, how many, when."""

from __future__ import annotations

import random
from typing import Final

from nsllm.simulations.core.plan import FAULTS, GUIDES, Cut, Fault, Outage, Plan
from nsllm.simulations.errors import PlanError

HABITS: Final = tuple(fault for fault in FAULTS if fault != "two-faced")
"""Of at most f Byzantine validators; the two-faced need more."""
AIMS: Final = tuple(guide for guide in GUIDES if guide != "two worlds")
CLOSE_S: Final = 2.4
"""Honest clocks are at most this far from the true time, so that they accept each other's blocks (5 s ahead)."""
WILD_S: Final = 60.0
"""A clock that is this wrong makes its validator refuse others' blocks, or others refuse its: counted as one of f."""


def draw(seed: int, peers: int, byzantine: int | None = None) -> Plan:
    """The plan of a seed; it has at least one fault.

    Args:
        seed: decides everything.
        peers: validators.
        byzantine: how many of them; without it as the seed says, at most f. More than f may break agreement: then
            they conspire.

    Raises:
        PlanError: so many are Byzantine that they need no honest validator, or that fewer than two are left.
    """
    most = min(peers - 2, (peers + (peers - 1) // 3) // 2)
    if byzantine is not None and byzantine > most:
        raise PlanError(f"{byzantine} of {peers} validators are to be Byzantine", hint=f"at most {most}")
    if byzantine is not None and byzantine > (peers - 1) // 3:
        return _conspiracy(seed, peers, byzantine)
    rng = random.Random(f"plan {seed} {peers} {byzantine}")  # noqa: S311 - reproducible, not secret
    tolerated = (peers - 1) // 3
    count = byzantine
    if count is None:
        count = rng.randint(0 if rng.random() < 0.25 else min(1, tolerated), tolerated)
    indexes = sorted(rng.sample(range(peers), count))
    scheme = bool(indexes) and rng.random() < 0.15
    faulty = tuple((index, "schemer" if scheme else rng.choice(HABITS)) for index in indexes)
    honest = [index for index in range(peers) if index not in indexes]
    heals_s = rng.uniform(4.0, 14.0)
    guide = rng.choice(AIMS) if rng.random() < 0.8 else "none"
    if any(fault == "schemer" for _, fault in faulty):
        guide, heals_s = "secret decision", rng.uniform(8.0, 24.0)
    cuts = () if scheme else tuple(_cut(rng, peers, heals_s) for _ in range(rng.choice((0, 0, 1, 1, 2))))
    outages = () if scheme else tuple(_outage(rng, honest, heals_s) for _ in range(rng.choice((0, 1, 1, 2, 3))))
    loss = 0.0 if scheme else rng.choice((0.0, 0.05, 0.15, 0.3))
    duplication = rng.choice((0.0, 0.05, 0.2))
    rates = tuple(rng.choice((1.0, 1.0, rng.uniform(0.7, 1.4))) for _ in range(peers))
    offsets_s = _offsets_s(rng, peers, honest, tolerated - count)
    plain = not (faulty or cuts or outages or loss or duplication) and guide == "none"
    return Plan(
        seed=seed,
        peers=peers,
        faulty=faulty,
        guide=guide,
        loss=0.05 if plain else loss,
        duplication=duplication,
        delay_s=0.02 if scheme else rng.choice((0.01, 0.05, 0.2, 0.6)),
        cuts=cuts,
        outages=outages,
        clock_rates=rates,
        clock_offsets_s=offsets_s,
        heals_s=heals_s,
    )


def _conspiracy(seed: int, peers: int, byzantine: int) -> Plan:
    """More than f conspire: two-faced in two worlds, or schemers about a secret decision. Little else goes wrong."""
    rng = random.Random(f"conspiracy {seed} {peers} {byzantine}")  # noqa: S311 - reproducible, not secret
    indexes = sorted(rng.sample(range(peers), byzantine))
    habit: Fault = rng.choice(("two-faced", "schemer"))
    return Plan(
        seed=seed,
        peers=peers,
        faulty=tuple((index, habit) for index in indexes),
        guide="two worlds" if habit == "two-faced" else "secret decision",
        loss=rng.choice((0.0, 0.0, 0.02)),
        duplication=rng.choice((0.0, 0.05)),
        delay_s=0.02,
        cuts=(),
        outages=(),
        clock_rates=(1.0,) * peers,
        clock_offsets_s=(0.0,) * peers,
        heals_s=rng.uniform(10.0, 40.0),
    )


def _offsets_s(rng: random.Random, peers: int, honest: list[int], spare: int) -> tuple[float, ...]:
    """Clocks near the true time; and while there are fewer than f Byzantine validators, perhaps one that is not."""
    offsets_s = [rng.uniform(-CLOSE_S, CLOSE_S) if rng.random() < 0.5 else 0.0 for _ in range(peers)]
    if spare > 0 and rng.random() < 0.3:
        offsets_s[rng.choice(honest)] = rng.choice((-WILD_S, WILD_S))
    return tuple(offsets_s)


def _cut(rng: random.Random, peers: int, heals_s: float) -> Cut:
    begin_s = rng.uniform(0, heals_s * 0.8)
    end_s = min(heals_s, begin_s + rng.uniform(0.5, 6.0))
    links = [(a, b) for a in range(peers) for b in range(peers) if a != b]
    if rng.random() < 0.4:
        return Cut(begin_s, end_s, frozenset(rng.sample(links, rng.randint(1, peers))))  # one-way links
    side = set(rng.sample(range(peers), rng.randint(1, peers // 2)))
    return Cut(begin_s, end_s, frozenset((a, b) for a, b in links if (a in side) != (b in side)))


def _outage(rng: random.Random, honest: list[int], heals_s: float) -> Outage:
    begin_s = rng.uniform(0, heals_s * 0.9)
    return Outage(rng.choice(honest), begin_s, min(heals_s, begin_s + rng.uniform(0.1, 5.0)))
