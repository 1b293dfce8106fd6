"""Plans: everything that a seed decides about one schedule before it runs. Small, printable, comparable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

import msgspec

from nsllm.simulations.errors import PlanError

Fault = Literal[
    "silent",
    "equivocator",
    "twin",
    "selective",
    "withholding leader",
    "censor",
    "late voter",
    "amnesiac",
    "flooder",
    "liar",
    "schemer",
    "two-faced",
]
"""Habits of Byzantine validators, see `nsllm.simulations.core.adversary`."""
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
Guide = Literal["none", "lone lock", "short of a decision", "split", "slow proposals", "secret decision", "two worlds"]
"""What links aim at, see `nsllm.simulations.core.links`."""
GUIDES: Final[tuple[Guide, ...]] = get_args(Guide)

HEIGHTS: Final = 3
"""Decisions that every honest validator must reach."""


MAX_PEERS: Final = 32


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
    """Byzantine validators."""
    guide: Guide
    """What the links aim at, beyond chance."""
    loss: float
    duplication: float
    delay_s: float
    """Mean of a message's delay; reordering follows from its spread."""
    cuts: tuple[Cut, ...]
    outages: tuple[Outage, ...]
    clock_rates: tuple[float, ...]
    """Virtual seconds a second of each validator's clock, for its timers."""
    clock_offsets_s: tuple[float, ...]
    """How far ahead each validator's wall clock is, by which it dates its blocks and judges others'."""
    heals_s: float

    @cached_property
    def honest(self) -> tuple[int, ...]:
        """Validators that follow the algorithm."""
        return tuple(index for index in range(self.peers) if self.is_honest[index])

    @cached_property
    def is_honest(self) -> tuple[bool, ...]:
        """Of each validator, whether it follows the algorithm."""
        faulty = dict(self.faulty)
        return tuple(index not in faulty for index in range(self.peers))

    @property
    def quorum(self) -> int:
        """Of the validators."""
        return (self.peers + (self.peers - 1) // 3) // 2 + 1

    @property
    def tolerated(self) -> bool:
        """At most f validators are Byzantine, so that every promise must hold."""
        return len(self.faulty) <= (self.peers - 1) // 3

    def victim(self, height: int) -> int:
        """The honest validator that guided links and the schemer treat apart at a height."""
        return self.honest[(height + self.seed) % len(self.honest)]

    def confidants(self, height: int) -> tuple[int, ...]:
        """With more than f Byzantine validators: the honest ones that must lock for the victim to decide, no others."""
        first = self.honest.index(self.victim(height))
        return (*self.honest[first:], *self.honest[:first])[: max(1, self.quorum - len(self.faulty))]

    def is_deaf(self, to: int, sender: int) -> bool:
        """Whether an honest validator is kept from hearing another, so that its ear falls one short of a quorum."""
        if not (self.is_honest[to] and self.is_honest[sender]):
            return False
        apart = (self.honest.index(sender) - self.honest.index(to)) % len(self.honest)
        return 0 < apart <= len(self.honest) - self.quorum + 1

    def secret_round(self, height: int) -> int:
        """The round in which the victim is to decide, see the guide "secret decision"."""
        return (height + self.seed // 7) % 2

    def world_of(self, index: int) -> int:
        """Which of the two worlds an honest validator stands in, see the guide "two worlds"."""
        return self.honest.index(index) % 2

    def faults(self) -> tuple[str, ...]:
        """Everything that goes wrong, in words."""
        said = [f"validator {index} is {fault}" for index, fault in self.faulty]
        said += [f"links {sorted(cut.links)} are cut {cut.begin_s:.1f}-{cut.end_s:.1f} s" for cut in self.cuts]
        said += [f"validator {o.validator} is off {o.begin_s:.1f}-{o.end_s:.1f} s" for o in self.outages]
        if self.guide != "none":
            said.append(f"links aim at: {self.guide}")
        if set(self.clock_rates) != {1.0}:
            said.append("clocks run at " + ", ".join(f"{rate:.2f}" for rate in self.clock_rates))
        if any(self.clock_offsets_s):
            said.append("clocks are ahead by " + ", ".join(f"{offset:.1f}" for offset in self.clock_offsets_s) + " s")
        if self.loss or self.duplication:
            said.append(f"loss {self.loss:.2f}, duplication {self.duplication:.2f}")
        return (*said, f"messages take {self.delay_s:.3f} s until the network heals at {self.heals_s:.1f} s")


def plan_to_json(plan: Plan) -> str:
    """One line, for a command line or a file."""
    return msgspec.json.encode(plan, order="deterministic").decode()


def plan_from_json(text: str) -> Plan:
    """The plan that `plan_to_json` wrote.

    Raises:
        PlanError: not a plan, or one that fits no validators.
    """
    try:
        plan = msgspec.json.decode(text, type=Plan)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PlanError(f"not a plan: {error}", hint="`nsllm sim replay --shrink` prints plans") from None
    named = {*(index for index, _ in plan.faulty), *(outage.validator for outage in plan.outages)}
    named |= {index for cut in plan.cuts for link in cut.links for index in link}
    clocks = {len(plan.clock_rates), len(plan.clock_offsets_s)}
    if not 2 <= plan.peers <= MAX_PEERS or named - set(range(plan.peers)) or clocks != {plan.peers}:
        raise PlanError(f"a plan of {plan.peers} validators names {sorted(named)} and has clocks for {sorted(clocks)}")
    if len(plan.honest) < 1 or {outage.validator for outage in plan.outages} - set(plan.honest):
        raise PlanError("a plan needs an honest validator, and only honest ones lose power")
    return plan
