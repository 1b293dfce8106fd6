"""Byzantine validators: each an honest one with one habit, so that what they say is plausible until it hurts."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.effects import SignProposal, SignVote
from nsllm.consensus.message import Body as Message
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Digest, Height, Round
from nsllm.simulations.core.marks import CENSORED, OTHERWISE, REFUSED, SOUND
from nsllm.simulations.core.surroundings import Surroundings
from nsllm.simulations.core.validator import TIMEOUTS, UNSIGNED, Validator

FAR_ROUNDS: Final = 1000


class Byzantine(Validator):
    """Signs without a guard, and knows no shame.

    Args:
        world, index: as of an honest one.
        rng: its own.
        machine: number among those that share the key.
    """

    honest = False

    def __init__(self, world: Surroundings, index: int, rng: random.Random, machine: int = 0) -> None:
        self.rng = rng
        self.machine = machine
        super().__init__(world, index)

    def sign(self, effect: SignProposal | SignVote) -> Vote | Proposal | None:
        """No guard."""
        return self.unguarded(effect)


class Silent(Byzantine):
    """Says nothing at all."""

    def broadcast(self, body: Message) -> None:
        """Nothing."""

    def say(self, to: Iterable[int], body: Message) -> None:
        """Nothing."""


class Equivocator(Byzantine):
    """Tells one half of the others one thing and the other half another."""

    def broadcast(self, body: Message) -> None:
        """Two versions of each vote and proposal; the sides change with every message."""
        everybody = list(self.others)
        self.rng.shuffle(everybody)
        half = self.rng.randint(0, len(everybody))
        self.say(everybody[:half], body)
        self.say(everybody[half:], self._otherwise(body))

    def _otherwise(self, body: Message) -> Message:
        match body:
            case Vote(value=value):
                known = [block for block in self.state.candidates if block != value]
                other = self.rng.choice([*known, None]) if value is not None or known else value
                lock = body.lock if self.rng.random() < 0.5 else None
                return replace(body, value=other, lock=lock, valid_round=None)
            case Proposal():
                block = self.build(body.height, mark=OTHERWISE)
                return Proposal(
                    block=block,
                    epoch=body.epoch,
                    height=body.height,
                    round=body.round,
                    valid_round=None,
                    polka=(),
                    proposer=self.me,
                    signature=UNSIGNED,
                )
            case _:
                return body


class Twin(Byzantine):
    """One of two machines with the same key and folder of its own; each is heard by whom chance picks."""

    def broadcast(self, body: Message) -> None:
        """To a random part of the others."""
        self.say([index for index in self.others if self.rng.random() < 0.6], body)


class Selective(Byzantine):
    """Talks to some and never to the others."""

    def __init__(self, world: Surroundings, index: int, rng: random.Random, machine: int = 0) -> None:
        super().__init__(world, index, rng, machine)
        self.friends = frozenset(rng.sample(self.others, rng.randint(1, len(self.others))))

    def say(self, to: Iterable[int], body: Message) -> None:
        """Friends only."""
        super().say([index for index in to if index in self.friends], body)


class WithholdingLeader(Byzantine):
    """Votes as it should, and keeps its proposals from all but a few."""

    def broadcast(self, body: Message) -> None:
        """Proposals reach at most one other validator."""
        if not isinstance(body, Proposal):
            super().broadcast(body)
        elif self.rng.random() < 0.5:
            self.say([self.rng.choice(self.others)], body)


class Censor(Byzantine):
    """Leads with blocks that leave out what the others want in, and never passes on or gives what others propose."""

    def build(self, height: Height, *, mark: int = SOUND) -> Block:
        """Without."""
        del mark
        return super().build(height, mark=CENSORED)

    def say(self, to: Iterable[int], body: Message) -> None:
        """Own words only."""
        if isinstance(body, Vote) or (isinstance(body, Proposal) and body.block.header.proposer == self.me):
            super().say(to, body)


class LateVoter(Byzantine):
    """Votes when the others' timers are about to fire."""

    def broadcast(self, body: Message) -> None:
        """Held back for about a timeout."""
        for index in self.others:
            self.world.send(self, (index,), body, TIMEOUTS.prevote_s * self.rng.uniform(0.8, 1.3))


class Amnesiac(Byzantine):
    """Forgets its lock before each proposal."""

    def receive(self, sender: int, body: Message) -> None:
        """As always, without a lock."""
        if isinstance(body, Proposal):
            self.state = replace(self.state, locked=None, valid=None)
        super().receive(sender, body)


class Flooder(Byzantine):
    """Answers every message with votes for all kinds of rounds, heights and values."""

    def receive(self, sender: int, body: Message) -> None:
        """As always, and junk for somebody."""
        super().receive(sender, body)
        if self.rng.random() < 0.3 and self.world.wanted(self):
            value = self.rng.choice([None, Digest(self.rng.randbytes(32)), *self.state.candidates])
            far = self.rng.choice((0, 1, 2, FAR_ROUNDS))
            vote = Vote(
                kind=self.rng.choice(("prevote", "precommit")),
                epoch=self.world.validators.epoch,
                height=Height(self.state.height + self.rng.choice((0, 0, 0, 1, 5))),
                round=Round(self.state.round + far),
                value=value,
                validator=self.me,
                signature=UNSIGNED,
            )
            self.say([self.rng.randrange(self.world.validators.size)], vote)


class Liar(Byzantine):
    """Finds every block valid, proposes some that are not, and serves blocks with others' certificates."""

    def judge(self, block: Block) -> bool:
        """Everything is fine."""
        del block
        return True

    def build(self, height: Height, *, mark: int = SOUND) -> Block:
        """Half of them are such as the application refuses."""
        return super().build(height, mark=REFUSED if self.rng.random() < 0.5 else mark)

    def serve(self, decided: DecidedBlock) -> DecidedBlock:
        """A block of our own under a genuine certificate."""
        own = self.state.proposals.get(Round(0))
        block = own.block if own is not None else decided.block
        return DecidedBlock(block=block, certificate=decided.certificate)


class TwoFaced(Byzantine):
    """One of two machines with one key, each honest in a world of its own.

    Needs the guide "two worlds", and company: together with the two-faced each world must be a quorum.
    """

    def say(self, to: Iterable[int], body: Message) -> None:
        """To this world's honest validators, and to the machines of others' keys that stand in this world."""
        for index in to:
            self.world.whisper(self, index, self.machine, body)

    def receive(self, sender: int, body: Message) -> None:
        """What comes out of the other world is not for this machine."""
        if self.world.stands_in(sender, self.machine):
            super().receive(sender, body)
