"""Plans: everything that a seed decides about one schedule before it runs. Small, printable, comparable."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

Fault = Literal[
    "silent",
    "equivocator",
    "twin",
    "selective",
    "withholding leader",
    "late voter",
    "amnesiac",
    "flooder",
    "liar",
    "schemer",
]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
Guide = Literal["none", "lone lock", "short of a decision", "split", "slow proposals", "secret decision"]
GUIDES: Final[tuple[Guide, ...]] = get_args(Guide)

HEIGHTS: Final = 3
"""Decisions that every honest validator must reach."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Between two instants nothing goes over these links (sender, receiver)."""

    begin_s: float
    end_s: float
    links: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Outage:
    """A validator loses power, and what it had not synced; it starts again from its log."""

    validator: int
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Plan:
    """One schedule. Times are seconds of virtual time; until `heals_s` the network is bad, afterwards it is good."""

    seed: int
    peers: int
    faulty: tuple[tuple[int, Fault], ...]
    """Byzantine validators, at most f."""
    guide: Guide
    """What the links aim at, beyond chance."""
    loss: float
    duplication: float
    delay_s: float
    """Mean of a message's delay; reordering follows from its spread."""
    cuts: tuple[Cut, ...]
    outages: tuple[Outage, ...]
    clock_rates: tuple[float, ...]
    """Virtual seconds a second of each validator's clock."""
    heals_s: float

    @cached_property
    def honest(self) -> tuple[int, ...]:
        """Validators that follow the algorithm."""
        faulty = dict(self.faulty)
        return tuple(index for index in range(self.peers) if index not in faulty)

    def victim(self, height: int) -> int:
        """The honest validator that guided links and the schemer treat apart at a height."""
        return self.honest[(height + self.seed) % len(self.honest)]

    def secret_round(self, height: int) -> int:
        """The round in which the victim is to decide, see the guide "secret decision"."""
        return (height + self.seed // 7) % 2

    def faults(self) -> tuple[str, ...]:
        """Everything that goes wrong, in words."""
        said = [f"validator {index} is {fault}" for index, fault in self.faulty]
        said += [f"links {sorted(cut.links)} are cut {cut.begin_s:.1f}-{cut.end_s:.1f} s" for cut in self.cuts]
        said += [f"validator {o.validator} is off {o.begin_s:.1f}-{o.end_s:.1f} s" for o in self.outages]
        if self.guide != "none":
            said.append(f"links aim at: {self.guide}")
        return (*said, f"loss {self.loss:.2f}, duplication {self.duplication:.2f}, delay {self.delay_s:.3f} s")


def draw(seed: int, peers: int) -> Plan:
    """The plan of a seed for `peers` validators; at least one fault, at most f validators Byzantine."""
    rng = random.Random(f"plan {seed} {peers}")  # noqa: S311 - reproducible, not secret
    tolerated = (peers - 1) // 3
    count = rng.randint(0 if rng.random() < 0.25 else min(1, tolerated), tolerated)
    indexes = rng.sample(range(peers), count)
    scheme = bool(indexes) and rng.random() < 0.15
    faulty: tuple[tuple[int, Fault], ...] = tuple((index, rng.choice(FAULTS)) for index in sorted(indexes))
    if scheme:
        faulty = tuple((index, "schemer") for index in sorted(indexes))
    honest = [index for index in range(peers) if index not in indexes]
    heals_s = rng.uniform(4.0, 14.0)
    guide = rng.choice(GUIDES) if rng.random() < 0.8 else "none"
    if any(fault == "schemer" for _, fault in faulty):
        guide, heals_s = "secret decision", rng.uniform(10.0, 40.0)
    cuts = () if scheme else tuple(_cut(rng, peers, heals_s) for _ in range(rng.choice((0, 0, 1, 1, 2))))
    outages = () if scheme else tuple(_outage(rng, honest, heals_s) for _ in range(rng.choice((0, 1, 1, 2, 3))))
    return Plan(
        seed=seed,
        peers=peers,
        faulty=faulty,
        guide=guide,
        loss=0.0 if scheme else rng.choice((0.0, 0.05, 0.15, 0.3)),
        duplication=rng.choice((0.0, 0.05, 0.2)),
        delay_s=0.02 if scheme else rng.choice((0.01, 0.05, 0.2, 0.6)),
        cuts=cuts,
        outages=outages,
        clock_rates=tuple(rng.choice((1.0, 1.0, rng.uniform(0.7, 1.4))) for _ in range(peers)),
        heals_s=heals_s,
    )


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
