"""The world of one schedule: virtual time, links, the adversary's aim, and what must hold after every event."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.effects import Accuse
from nsllm.consensus.evidence import offence_of
from nsllm.consensus.inputs import TimedOut
from nsllm.consensus.message import Body as Message
from nsllm.consensus.message import PolkaCertificate, Request
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Address, Digest, Epoch, Height
from nsllm.simulations.core.adversary import HABITS, Liar
from nsllm.simulations.core.plan import HEIGHTS, Plan
from nsllm.simulations.core.validator import PowerCut, Validator
from nsllm.simulations.errors import InvariantError

HEALED_WITHIN_S: Final = 240.0
"""Virtual seconds after the network heals within which every honest validator has decided every height."""
MAX_EVENTS: Final = 100_000
GOOD_DELAY_S: Final = 0.005
REFUSED_SALT: Final = 7
ANY_LIFE: Final = -1
"""Of an event that reaches a validator in whatever life, if it runs."""
SWITCH: Final = -2
"""Of an event that comes from outside, whether it runs or not."""
SECRET_S: Final = 20.0
"""How long they keep a secret decision from the others, the network permitting."""
HOLD_S: Final = 2.5
"""How long guided links keep a message: past the other validators' prevote and precommit timers."""


@lru_cache(maxsize=8)
def validator_set(size: int) -> ValidatorSet:
    """Validators of a schedule; addresses only, nobody signs."""
    members = sorted(Address(hashlib.sha256(f"validator {i}".encode()).digest()[:20]) for i in range(size))
    return ValidatorSet(epoch=Epoch(0), members=tuple(members))


class World:
    """Runs one plan."""

    def __init__(self, plan: Plan, *, trace: list[str] | None = None) -> None:
        self.plan = plan
        self.trace = trace
        self.validators = validator_set(plan.peers)
        self.now_s = 0.0
        self.events = 0
        self.rng = random.Random(f"world {plan.seed} {plan.peers}")  # noqa: S311 - reproducible, not secret
        self._queue: list[tuple[float, int, Validator, int, Callable[[], None]]] = []
        self._sequence = 0
        self._signed: dict[tuple[Address, int, int, str], Digest | None] = {}
        self._precommits: set[tuple[Address, int, int, Digest]] = set()
        self._decided: dict[int, Digest] = {}
        self._blocks: dict[Digest, Block] = {}
        faulty = dict(plan.faulty)
        self._byzantine = frozenset(self.validators.members[index] for index in faulty)
        self.machines: list[list[Validator]] = []
        """By validator; two machines where a key has a twin."""
        for index in range(plan.peers):
            fault = faulty.get(index)
            if fault is None:
                self.machines.append([Validator(self, index)])
            else:
                count = 2 if fault == "twin" else 1
                rngs = [random.Random(f"byzantine {plan.seed} {index} {i}") for i in range(count)]  # noqa: S311
                self.machines.append([HABITS[fault](self, index, rng) for rng in rngs])
        self.honest = [machines[0] for machines in self.machines if machines[0].honest]
        for outage in plan.outages:
            validator = self.machines[outage.validator][0]
            self._push(outage.begin_s, validator, ANY_LIFE, partial(self._power_off, validator))
            self._push(outage.end_s, validator, SWITCH, partial(self._power_on, validator))

    def run(self) -> None:
        """Play until every honest validator has decided every height.

        Raises:
            InvariantError: something that must hold did not.
        """
        deadline_s = self.plan.heals_s + HEALED_WITHIN_S
        waiting = len(self.honest)
        while waiting:
            self.now_s, _, validator, life, action = heapq.heappop(self._queue)
            self.events += 1
            if self.now_s > deadline_s or self.events > MAX_EVENTS:
                states = [f"{v.index}: height {v.state.height} round {v.state.round}" for v in self.honest]
                raise InvariantError(f"no decision {HEALED_WITHIN_S:.0f} s after the network healed ({states})")
            before = validator.height
            self._play(validator, life, action)
            if validator.height != before and validator.honest:
                waiting = sum(v.height < HEIGHTS for v in self.honest)

    def digest(self) -> str:
        """What happened, in one number: decided blocks, events, time."""
        said = f"{self.events} {self.now_s:.9f} " + " ".join(d.hex() for _, d in sorted(self._decided.items()))
        return hashlib.sha256(said.encode()).hexdigest()

    # what validators do, see `Surroundings`

    def send(self, sender: Validator, to: int, body: Message, delay_s: float = 0.0) -> None:
        """Put a message on its way; links lose, double, delay and reorder until the network heals."""
        plan, rng = self.plan, self.rng
        copies = 1
        if self.now_s < plan.heals_s:
            if rng.random() < plan.loss:
                return
            for cut in plan.cuts:
                if cut.begin_s <= self.now_s < cut.end_s and (sender.index, to) in cut.links:
                    return
            copies += rng.random() < plan.duplication
            delay_s += self._aim(sender, to, body)
            mean_s = plan.delay_s
        else:
            mean_s = GOOD_DELAY_S
        for _ in range(copies):
            at_s = self.now_s + delay_s + rng.expovariate(1.0) * mean_s
            for machine in self.machines[to]:
                self._push(at_s, machine, ANY_LIFE, partial(machine.receive, sender.index, body))

    def later(self, validator: Validator, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so long by the validator's own clock, unless it restarts before."""
        at_s = self.now_s + seconds / self.plan.clock_rates[validator.index]
        self._push(at_s, validator, validator.life, action)

    def signs(self, validator: Validator, message: Vote | Proposal) -> None:
        """No honest validator signs two different things in one place."""
        kind: str = "proposal"
        value: Digest | None = message.value
        if isinstance(message, Vote):
            kind = message.kind
            if kind == "precommit" and value is not None:
                self._precommits.add((validator.me, message.height, message.round, value))
        if validator.honest:
            block = self._blocks.get(value) if value is not None else None
            if block is not None and not self.accepts(block):
                raise InvariantError(f"validator {validator.index} signed a {kind} for an invalid block")
            slot = (validator.me, message.height, message.round, kind)
            if self._signed.setdefault(slot, value) != value:
                raise InvariantError(f"validator {validator.index} signed two {kind}s at {slot[1:3]}")

    def builds(self, validator: Validator, block: Block) -> None:
        """Remember who built what: only what somebody built may be decided."""
        del validator
        self._blocks[block.header.id()] = block

    def commits(self, validator: Validator, decided: DecidedBlock) -> None:
        """Agreement, validity of the block and of its certificate."""
        if not validator.honest:
            return
        header = decided.block.header
        value, height = header.id(), header.height
        certificate = decided.certificate
        if self._decided.setdefault(height, value) != value:
            raise InvariantError(f"two blocks are decided at height {height}")
        if value not in self._blocks or not self.accepts(decided.block):
            raise InvariantError(f"a block is decided that nobody built, or that is invalid, at height {height}")
        signers = [vote.validator for vote in certificate.precommits]
        if certificate.header != header or signers != sorted(set(signers)):
            raise InvariantError(f"the certificate of height {height} is not in order")
        honest = [signer for signer in signers if signer not in self._byzantine]
        if len(signers) < (self.validators.size + (self.validators.size - 1) // 3) // 2 + 1:
            raise InvariantError(f"the certificate of height {height} has {len(signers)} signers")
        for signer in honest:
            if (signer, height, certificate.round, value) not in self._precommits:
                raise InvariantError(f"the certificate of height {height} names one that did not sign it")

    def accuses(self, validator: Validator, effect: Accuse) -> None:
        """No honest validator is accused."""
        if validator.honest and offence_of(effect.evidence).validator not in self._byzantine:
            raise InvariantError(f"validator {validator.index} accuses an honest one")

    def accepts(self, block: Block) -> bool:
        """The application's verdict: what a liar marked is invalid."""
        return block.header.log_size % 1000 != REFUSED_SALT

    def block_after(self, asker: Validator, height: Height) -> DecidedBlock | None:
        """A block from some peer that runs and has it; a liar serves something else."""
        others = [v for machines in self.machines for v in machines if v is not asker and v.running]
        having = [v for v in others if v.height >= height and self._reaches(v.index, asker.index)]
        if not having:
            return None
        source = self.rng.choice(having)
        decided = source.chain[height - 1]
        return source.serve(decided) if isinstance(source, Liar) else decided

    def victim(self, height: int) -> int:
        """Whom the adversary treats apart at a height."""
        return self.plan.victim(height)

    def secret_round(self, height: int) -> int:
        """The round in which the victim is to decide."""
        return self.plan.secret_round(height)

    def wanted(self, height: int) -> bool:
        """So many heights and no more."""
        return height <= HEIGHTS

    def survives(self, synced: int, written: int) -> int:
        """Any part of what was not synced may be on disk."""
        return self.rng.randint(synced, written)

    # inside

    def _push(self, at_s: float, validator: Validator, life: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (at_s, self._sequence, validator, life, action))

    def _play(self, validator: Validator, life: int, action: Callable[[], None]) -> None:
        there = life == SWITCH or (validator.running and life in {ANY_LIFE, validator.life})
        if self.trace is not None:
            self.trace.append(f"{self.now_s:9.3f}  {validator.index}  {_words(action)}{'' if there else ' (lost)'}")
        if there:
            try:
                action()
            except PowerCut:
                validator.lose_power()

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

    def _reaches(self, sender: int, to: int) -> bool:
        hidden = self.plan.guide == "secret decision" and self.now_s < self.plan.heals_s
        if hidden and sender == self.plan.victim(self.machines[to][0].height + 1):
            return False
        return not any(c.begin_s <= self.now_s < c.end_s and (sender, to) in c.links for c in self.plan.cuts)

    def _aim(self, sender: Validator, to: int, body: Message) -> float:  # noqa: PLR0911 - one a guide
        """Extra delay of a message, by the plan's guide: chosen to make validators lock apart, or decide alone."""
        guide, size = self.plan.guide, self.plan.peers
        if guide == "secret decision":
            return SECRET_S if self._secret(sender, to, body) else 0.0
        match body:
            case Vote(kind="prevote", value=value, round=round_, height=height) if guide == "lone lock":
                return HOLD_S if value is not None and to != (height + round_) % size else 0.0
            case PolkaCertificate() if guide == "lone lock":
                return HOLD_S
            case Vote(kind="precommit", value=value, round=round_, height=height) if guide == "short of a decision":
                return HOLD_S if value is not None and to != (height * 3 + round_) % size else 0.0
            case Proposal(round=round_) if guide == "slow proposals":
                return self.rng.uniform(2.5, 3.5) * (1 + 0.5 * round_) if to % 2 else 0.0
            case Vote(round=round_) if guide == "split":
                return HOLD_S if (sender.index + round_) % 2 != (to + round_) % 2 else 0.0
            case _:
                return 0.0

    def _secret(self, sender: Validator, to: int, body: Message) -> bool:
        """Whether a message would spoil the secret: polkas before the secret round, the victim's words after it."""
        if not isinstance(body, Vote | Proposal):
            return to in self.plan.honest and not isinstance(body, Request)
        height, round_ = body.height, body.round
        secret, victim = self.plan.secret_round(height), self.plan.victim(height)
        prevote = isinstance(body, Vote) and body.kind == "prevote"
        if prevote and round_ < secret:
            return to in self.plan.honest
        precommit = isinstance(body, Vote) and body.kind == "precommit"
        return sender.index == victim and (round_ > secret or (round_ == secret and precommit))


def _words(action: Callable[[], None]) -> str:
    """An event in a trace's line."""
    if not isinstance(action, partial):
        return action.__name__.strip("_")
    said = [action.func.__name__.strip("_")]
    for part in action.args:
        match part:
            case Vote(kind=kind, height=height, round=round_, value=value):
                said.append(f"{kind} {height}/{round_} {'nil' if value is None else value.hex()[:8]}")
            case Proposal(height=height, round=round_, valid_round=valid_round):
                after = "" if valid_round is None else f" after {valid_round}"
                said.append(f"proposal {height}/{round_} {part.value.hex()[:8]}{after}")
            case TimedOut(step=step, round=round_):
                said.append(f"{step} timer of round {round_}")
            case int():
                said.append(str(part))
            case _:
                said.append(type(part).__name__)
    return " ".join(said)
