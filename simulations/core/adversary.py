"""Byzantine validators: each an honest one with one habit, so that what they say is plausible until it hurts."""

from __future__ import annotations

import random
from functools import partial
from typing import Final

from msgspec.structs import replace

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.effects import SignProposal, SignVote
from nsllm.consensus.inputs import Input, Start
from nsllm.consensus.message import Body as Message
from nsllm.consensus.message import PolkaCertificate, RoundCertificate
from nsllm.consensus.resend import VOTE_KINDS
from nsllm.consensus.vote import Proposal, Vote, VoteKind
from nsllm.ids import Address, Digest, Height, Round
from nsllm.simulations.core.plan import Fault
from nsllm.simulations.core.validator import TIMEOUTS, UNSIGNED, Surroundings, Validator

FAR_ROUNDS: Final = 1000


class Byzantine(Validator):
    """Signs without a guard, and knows no shame."""

    honest = False

    def __init__(self, world: Surroundings, index: int, rng: random.Random) -> None:
        self.rng = rng
        super().__init__(world, index)

    def sign(self, effect: SignProposal | SignVote) -> Vote | Proposal | None:
        """No guard."""
        return self.unguarded(effect)


class Silent(Byzantine):
    """Says nothing at all."""

    def broadcast(self, body: Message) -> None:
        """Nothing."""

    def say(self, to: object, body: Message) -> None:
        """Nothing."""


class Equivocator(Byzantine):
    """Tells one half of the others one thing and the other half another."""

    def broadcast(self, body: Message) -> None:
        """Two versions of each vote and proposal; the sides change with every message."""
        everybody = [index for index in range(self.world.validators.size) if index != self.index]
        self.rng.shuffle(everybody)
        half = self.rng.randint(0, len(everybody))
        self.say(everybody[:half], body)
        self.say(everybody[half:], self._otherwise(body))

    def _otherwise(self, body: Message) -> Message:
        match body:
            case Vote(value=value):
                known = [block for block in self.state.candidates if block != value]
                other = self.rng.choice([*known, None]) if value is not None or known else value
                return replace(body, value=other, valid_round=None)
            case Proposal():
                block = self.build(body.height, salt=1)
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
        everybody = [index for index in range(self.world.validators.size) if index != self.index]
        self.say([index for index in everybody if self.rng.random() < 0.6], body)


class Selective(Byzantine):
    """Talks to some and never to the others."""

    def __init__(self, world: Surroundings, index: int, rng: random.Random) -> None:
        super().__init__(world, index, rng)
        others = [other for other in range(world.validators.size) if other != index]
        self.friends = frozenset(rng.sample(others, rng.randint(1, len(others))))

    def say(self, to: object, body: Message) -> None:
        """Friends only."""
        assert isinstance(to, list | tuple)
        super().say([index for index in to if index in self.friends], body)


class WithholdingLeader(Byzantine):
    """Votes as it should, and keeps its proposals from all but a few."""

    def broadcast(self, body: Message) -> None:
        """Proposals reach at most one other validator."""
        if not isinstance(body, Proposal):
            super().broadcast(body)
        elif self.rng.random() < 0.5:
            self.say([self.rng.choice([i for i in range(self.world.validators.size) if i != self.index])], body)


class LateVoter(Byzantine):
    """Votes when the others' timers are about to fire."""

    def broadcast(self, body: Message) -> None:
        """Held back for about a timeout."""
        for index in range(self.world.validators.size):
            if index != self.index:
                self.world.send(self, index, body, TIMEOUTS.prevote_s * self.rng.uniform(0.8, 1.3))


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
        if self.rng.random() < 0.3 and self.world.wanted(self.state.height):
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

    def build(self, height: Height, *, salt: int = 0) -> Block:
        """Salt 7 marks what the application refuses, see `World.accepts`."""
        return super().build(height, salt=7 if self.rng.random() < 0.5 else salt)

    def serve(self, decided: DecidedBlock) -> DecidedBlock:
        """A block of our own under a genuine certificate."""
        own = self.state.proposals.get(Round(0))
        block = own.block if own is not None else decided.block
        return DecidedBlock(block=block, certificate=decided.certificate)


class Schemer(Byzantine):
    """Lets one victim decide in secret, then talks the others into something else. Follows no algorithm.

    Links help it (guide "secret decision"). In the plan's secret round it precommits the value to the victim and nil
    to the rest, which makes these leave the round. It never supports that value again; when it may propose, it
    proposes a block of an earlier round with its genuine polka, or a new one that claims any valid round.
    """

    def __init__(self, world: Surroundings, index: int, rng: random.Random) -> None:
        self.prevotes: dict[tuple[int, Digest], dict[Address, Vote]] = {}
        self.proposed: dict[int, Proposal] = {}
        self.voted: set[int] = set()
        self.led: set[int] = set()
        super().__init__(world, index, rng)

    def apply(self, event: Input) -> None:
        """The core is not asked; its start is the signal that a height begins."""
        if isinstance(event, Start):
            self.prevotes.clear()
            self.proposed.clear()
            self.voted.clear()
            self.led.clear()
            self._lead(0)

    def hear(self, body: Vote | Proposal | PolkaCertificate | RoundCertificate) -> None:
        """What is of this height is turned against it."""
        height = self.state.height
        if isinstance(body, Proposal):
            self._answer(body)
        elif isinstance(body, Vote):
            if body.kind == "prevote" and body.value is not None:
                self.prevotes.setdefault((body.round, body.value), {})[body.validator] = body
            following = body.round + 1
            mine = self.world.validators.proposer(height, following) == self.me
            if mine and body.kind == "precommit" and following not in self.led:
                self.led.add(following)
                self.world.later(
                    self, TIMEOUTS.precommit_s * (1 + body.round), partial(self._lead_at, height, following)
                )

    def _lead_at(self, height: Height, round_: int) -> None:
        if height == self.state.height:
            self._lead(round_)

    def _lead(self, round_: int) -> None:
        height = self.state.height
        if self.world.validators.proposer(height, round_) != self.me or round_ in self.proposed:
            return
        polka: tuple[Vote, ...] = ()
        block, claimed = self.build(height), None
        secret = self.world.secret_round(height)
        if round_ > secret:
            claimed = self.rng.choice([None, *range(round_)])
            for (earlier, value), votes in sorted(self.prevotes.items()):
                old = self.proposed.get(earlier)
                if earlier < secret and old is not None and old.value == value:
                    own = self._vote("prevote", earlier, value)
                    block, claimed = old.block, earlier
                    polka = tuple(vote for _, vote in sorted({**votes, self.me: own}.items()))
        proposal = Proposal(
            block=block,
            epoch=self.world.validators.epoch,
            height=height,
            round=Round(round_),
            valid_round=None if claimed is None else Round(claimed),
            polka=polka,
            proposer=self.me,
            signature=UNSIGNED,
        )
        self.broadcast(proposal)
        self._answer(proposal)

    def _answer(self, proposal: Proposal) -> None:
        round_, value = proposal.round, proposal.value
        self.proposed.setdefault(round_, proposal)
        if round_ in self.voted:
            return
        self.voted.add(round_)
        secret = self.world.secret_round(proposal.height)
        target = self.proposed.get(secret)
        if round_ > secret and target is not None and target.value == value:
            self._vote_all(round_, None)
        elif round_ > secret:
            self._vote_all(round_, value if self.rng.random() < 0.7 else None)
        else:
            self.broadcast(self._vote("prevote", round_, value))
            for index in range(self.world.validators.size):
                told = round_ == secret and index == self.world.victim(proposal.height)
                if index != self.index:
                    self.say([index], self._vote("precommit", round_, value if told else None))

    def _vote_all(self, round_: int, value: Digest | None) -> None:
        for kind in VOTE_KINDS:
            self.broadcast(self._vote(kind, round_, value))

    def _vote(self, kind: VoteKind, round_: int, value: Digest | None) -> Vote:
        vote = self.unguarded(SignVote(kind, Round(round_), value))
        assert isinstance(vote, Vote)
        self.world.signs(self, vote)
        return vote


HABITS: Final[dict[Fault, type[Byzantine]]] = {
    "silent": Silent,
    "equivocator": Equivocator,
    "twin": Twin,
    "selective": Selective,
    "withholding leader": WithholdingLeader,
    "late voter": LateVoter,
    "amnesiac": Amnesiac,
    "flooder": Flooder,
    "liar": Liar,
    "schemer": Schemer,
}
