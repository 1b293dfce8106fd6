"""The world of one schedule: virtual time, links, machines that lose power, and promises checked at every step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import count
from math import log
from typing import Final

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.effects import Accuse
from nsllm.consensus.inputs import CertificateReceived, Input, ProposalReceived, VoteReceived
from nsllm.consensus.message import Body as Message
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Address, Epoch, Height, TimeMs
from nsllm.simulations.core.adversary import Liar
from nsllm.simulations.core.habits import HABITS
from nsllm.simulations.core.links import GOOD_DELAY_S, Links
from nsllm.simulations.core.plan import Plan
from nsllm.simulations.core.promises import Promises
from nsllm.simulations.core.surroundings import PowerCut
from nsllm.simulations.core.validator import Validator
from nsllm.simulations.core.words import in_words
from nsllm.simulations.errors import InvariantError

HEALED_WITHIN_S: Final = 240.0
"""Virtual seconds after the network heals within which every honest validator has decided every height."""
MAX_EVENTS: Final = 100_000
START_MS: Final = 1_700_000_000_000
"""True wall time when a schedule begins."""
ANY_LIFE: Final = -1
"""Of an event that reaches a validator in whatever life, if it runs."""
SWITCH: Final = -2
"""Of an event that comes from outside, whether it runs or not."""

_Event = tuple[float, int, Validator, int, Callable[[], None] | None, Message | None, int]
"""Time, number, whose, in which life; what is done, or a message and its sender."""


@lru_cache(maxsize=8)
def validator_set(size: int) -> ValidatorSet:
    """Validators of a schedule; addresses only, nobody signs."""
    members = sorted(Address(hashlib.sha256(f"validator {i}".encode()).digest()[:20]) for i in range(size))
    return ValidatorSet(epoch=Epoch(0), members=tuple(members))


class World:
    """Runs one plan.

    Args:
        plan: what goes wrong.
        trace: gets a line for every event, if given.
    """

    def __init__(self, plan: Plan, *, trace: list[str] | None = None) -> None:
        self.plan = plan
        self.trace = trace
        self.validators = validator_set(plan.peers)
        self.now_s = 0.0
        self.events = 0
        self.rng = random.Random(f"world {plan.seed} {plan.peers}")  # noqa: S311 - reproducible, not secret
        self.links = Links(plan, self.rng)
        faulty = dict(plan.faulty)
        self.promises = Promises(self.validators, frozenset(self.validators.members[index] for index in faulty))
        self._queue: list[_Event] = []
        self._number = count()
        self._logs: list[list[Input]] = []
        self.named: frozenset[Address] = frozenset()
        """Guilty validators, by honest logs, after more than f were Byzantine."""
        self.machines: list[tuple[Validator, ...]] = []
        """By validator; two machines where a key has a twin."""
        for index in range(plan.peers):
            fault = faulty.get(index)
            if fault is None:
                self.machines.append((Validator(self, index),))
            else:
                rngs = [random.Random(f"byzantine {plan.seed} {index} {i}") for i in range(2)]  # noqa: S311
                copies = 2 if fault in {"twin", "two-faced"} else 1
                self.machines.append(tuple(HABITS[fault](self, index, rngs[i], i) for i in range(copies)))
        self.honest = [machines[0] for machines in self.machines if machines[0].honest]
        for outage in plan.outages:
            validator = self.machines[outage.validator][0]
            self._push(outage.begin_s, validator, ANY_LIFE, partial(self._power_off, validator))
            self._push(outage.end_s, validator, SWITCH, partial(self._power_on, validator))

    def run(self) -> None:
        """Play until every honest validator has decided every height, and what all want is in one of the blocks.

        With more than f Byzantine validators: until agreement breaks, or time is over.

        Raises:
            InvariantError: something that must hold did not.
        """
        deadline_s = self.plan.heals_s + HEALED_WITHIN_S
        queue, trace, promises = self._queue, self.trace, self.promises
        waiting = len(self.honest)
        while waiting:
            self.now_s, _, validator, life, action, body, sender = heappop(queue)
            self.events += 1
            if self.now_s > deadline_s or self.events > MAX_EVENTS:
                self._too_late()
                break
            there = life == SWITCH or (validator.running and life in (ANY_LIFE, validator.life))
            if trace is not None:
                lost = "" if there else " (lost)"
                trace.append(f"{self.now_s:9.3f}  {validator.index}  {in_words(action, body, sender)}{lost}")
            if not there:
                continue
            before = validator.chain
            height = len(before)
            try:
                if body is not None:
                    validator.receive(sender, body)
                elif action is not None:
                    action()
            except PowerCut:
                validator.lose_power()
            if len(before) != height and validator.honest:
                waiting = 0 if promises.broken else sum(self.wanted(v) for v in self.honest)
        if not self.plan.tolerated:
            self.named = promises.named(self._votes())

    def digest(self) -> str:
        """What happened, in one number: decided blocks, events, time."""
        decided = self.promises.decided
        said = f"{self.events} {self.now_s:.9f} " + " ".join(decided[height].hex() for height in sorted(decided))
        return hashlib.sha256(said.encode()).hexdigest()

    # what validators do, see `Surroundings`

    def send(self, sender: Validator, to: Iterable[int], body: Message, delay_s: float = 0.0) -> None:
        """Put a message on its way; links lose, double, delay and reorder until the network heals."""
        now_s, index, queue, machines, number = self.now_s, sender.index, self._queue, self.machines, self._number
        if now_s >= self.plan.heals_s:
            rand = self.rng.random
            for receiver in to:
                at_s = now_s + delay_s - log(1.0 - rand()) * GOOD_DELAY_S
                for machine in machines[receiver]:
                    heappush(queue, (at_s, next(number), machine, ANY_LIFE, None, body, index))
            return
        delays_s = self.links.delays_s
        for receiver in to:
            for link_s in delays_s(now_s, index, receiver, body):
                for machine in machines[receiver]:
                    heappush(queue, (now_s + delay_s + link_s, next(number), machine, ANY_LIFE, None, body, index))

    def whisper(self, sender: Validator, to: int, world: int, body: Message) -> None:
        """Nothing but delay happens to it."""
        if not self.stands_in(to, world):
            return
        at_s = self.now_s - log(1.0 - self.rng.random()) * GOOD_DELAY_S
        machines = self.machines[to]
        machine = machines[world if len(machines) > 1 else 0]
        heappush(self._queue, (at_s, next(self._number), machine, ANY_LIFE, None, body, sender.index))

    def stands_in(self, index: int, world: int) -> bool:
        """By the plan."""
        return not self.plan.is_honest[index] or self.plan.world_of(index) == world

    def later(self, validator: Validator, seconds: float, action: Callable[[], None]) -> None:
        """By the validator's own clock, unless it restarts before."""
        self._push(self.now_s + seconds / self.plan.clock_rates[validator.index], validator, validator.life, action)

    def wall_ms(self, validator: Validator) -> TimeMs:
        """True time, and as much as the validator's clock is ahead."""
        return TimeMs(START_MS + int(1000 * (self.now_s + self.plan.clock_offsets_s[validator.index])))

    def signs(self, validator: Validator, message: Vote | Proposal) -> None:
        """See `Promises`."""
        self.promises.signed(validator.me, message)

    def refuses(self, validator: Validator, message: Vote | Proposal) -> None:
        """See `Promises`."""
        self.promises.refused(validator.me, message)

    def builds(self, block: Block) -> None:
        """See `Promises`."""
        self.promises.built(block)

    def commits(self, validator: Validator, decided: DecidedBlock) -> None:
        """See `Promises`."""
        if validator.honest:
            self.promises.committed(decided)

    def accuses(self, validator: Validator, effect: Accuse) -> None:
        """See `Promises`."""
        self.promises.accused(validator.me, effect.evidence)

    def keeps(self, log: list[Input]) -> None:
        """Only where somebody may have to be named."""
        if not self.plan.tolerated:
            self._logs.append(log)

    def block_after(self, asker: Validator, height: Height) -> DecidedBlock | None:
        """A block from some peer that runs and has it; a liar serves something else."""
        others = [v for machines in self.machines for v in machines if v is not asker and v.running]
        carries, now_s = self.links.carries, self.now_s
        having = [v for v in others if v.height >= height and carries(now_s, v.index, asker.index, height)]
        if not having:
            return None
        source = self.rng.choice(having)
        decided = source.chain[height - 1]
        return source.serve(decided) if isinstance(source, Liar) else decided

    def victim(self, height: int) -> int:
        """By the plan."""
        return self.plan.victim(height)

    def secret_round(self, height: int) -> int:
        """By the plan."""
        return self.plan.secret_round(height)

    def forgetful(self, height: int) -> bool:
        """By the plan."""
        return not self.plan.tolerated and (height + self.plan.seed // 2) % 2 == 0

    def wanted(self, validator: Validator) -> bool:
        """Until what all want is decided; they want it from height `HEIGHTS` on, and censors leave it out."""
        return not validator.served

    def survives(self, synced: int, written: int) -> int:
        """Any part of what was not synced may be on disk."""
        return self.rng.randint(synced, written)

    # inside

    def _push(self, at_s: float, validator: Validator, life: int, action: Callable[[], None]) -> None:
        heappush(self._queue, (at_s, next(self._number), validator, life, action, None, -1))

    def _too_late(self) -> None:
        """Nothing more will happen; that is wrong only if at most f validators are Byzantine.

        Raises:
            InvariantError: says where each honest validator stands.
        """
        if self.plan.tolerated:
            states = [f"{v.index}: height {v.state.height} round {v.state.round}" for v in self.honest]
            raise InvariantError(f"no decision {HEALED_WITHIN_S:.0f} s after the network healed ({states})")

    def _votes(self) -> Iterable[Vote]:
        """Every vote in a log or certificate of an honest validator."""
        for entries in (*self._logs, *(validator.log for validator in self.honest)):
            for event in entries:
                if isinstance(event, VoteReceived):
                    yield event.vote
                elif isinstance(event, CertificateReceived):
                    yield from event.votes
                elif isinstance(event, ProposalReceived):
                    yield from event.proposal.polka
        chains = [validator.chain for validator in self.honest]
        for decided in (*(self.promises.broken or ()), *(decided for chain in chains for decided in chain)):
            header, certificate = decided.block.header, decided.certificate
            for signed in certificate.precommits:
                yield Vote(
                    kind="precommit",
                    epoch=header.epoch,
                    height=header.height,
                    round=certificate.round,
                    value=header.id(),
                    validator=signed.validator,
                    signature=signed.signature,
                )

    def _power_off(self, validator: Validator) -> None:
        """At once, or at its next signature: before the log has it, or before it is sent."""
        validator.doom = self.rng.choice(("", "signed", "written"))
        if not validator.doom:
            validator.lose_power()

    def _power_on(self, validator: Validator) -> None:
        if validator.doom:  # it signed nothing meanwhile
            validator.lose_power()
        if not validator.running:
            validator.restart()
