"""The schemer: lets one victim decide in secret, then talks the others into something else."""

from __future__ import annotations

import random
from functools import partial

from nsllm.consensus.effects import SignVote
from nsllm.consensus.inputs import Input, Start
from nsllm.consensus.message import PolkaCertificate, RoundCertificate
from nsllm.consensus.resend import VOTE_KINDS
from nsllm.consensus.vote import Choice, Proposal, Vote, VoteKind
from nsllm.ids import Address, Digest, Round
from nsllm.simulations.core.adversary import Byzantine
from nsllm.simulations.core.surroundings import Surroundings
from nsllm.simulations.core.validator import TIMEOUTS, UNSIGNED


class Schemer(Byzantine):
    """Follows no algorithm. Links help it (guide "secret decision").

    Before the plan's secret round it collects prevotes of which the others hear too few. In the secret round it
    precommits the value to the victim and nil to the rest, which makes these leave the round. It never supports that
    value again; when it may propose, it proposes a block of an earlier round with its genuine polka, or a new one that
    claims any valid round. Where others prevote nil, so does it: they shall go on. With more than f of its kind it
    may do without two precommits in one round, and only forget the one.
    """

    def __init__(self, world: Surroundings, index: int, rng: random.Random, machine: int = 0) -> None:
        self.prevotes: dict[tuple[int, Digest], dict[Address, Vote]] = {}
        self.proposed: dict[int, Proposal] = {}
        self.voted: set[int] = set()
        self.led: set[int] = set()
        super().__init__(world, index, rng, machine)

    def apply(self, event: Input) -> None:
        """The core is not asked; its start is the signal that a height begins."""
        if isinstance(event, Start):
            self.prevotes.clear()
            self.proposed.clear()
            self.voted.clear()
            self.led.clear()
            self._lead(0)

    def hear_certificate(self, body: PolkaCertificate | RoundCertificate) -> None:
        """No use."""

    def hear_vote(self, vote: Vote) -> None:
        """Prevotes may become a polka to propose with; precommits tell when to lead; nil is answered with nil."""
        height, round_ = self.state.height, vote.round
        if vote.kind == "prevote" and vote.value is not None:
            self.prevotes.setdefault((round_, vote.value), {})[vote.validator] = vote
        elif vote.kind == "prevote" and round_ not in self.voted and round_ != self.world.secret_round(height):
            self.voted.add(round_)
            self._vote_all(round_, None)
        following = round_ + 1
        mine = self.world.validators.proposer(height, following) == self.me
        if mine and vote.kind == "precommit" and following not in self.led:
            self.led.add(following)
            delay_s = TIMEOUTS.precommit_s * (1 + round_)
            self.world.later(self, delay_s, partial(self._lead_at, height, following))

    def hear_proposal(self, proposal: Proposal) -> None:
        """Vote on it, each according to the scheme; once a round."""
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
            self.broadcast(self._vote("prevote", round_, value if round_ == secret else None))
            self._precommit(proposal.height, round_, value)

    def _precommit(self, height: int, round_: int, value: Digest) -> None:
        """The value to the victim in the secret round, nil to all others; or nothing, where f+1 can pull them on."""
        told = self.world.victim(height) if round_ == self.world.secret_round(height) else None
        forget = told is not None and self.world.forgetful(height)
        if forget:
            self.world.later(self, TIMEOUTS.prevote_s, partial(self._pull_to, height, round_ + 1))
        for index in self.others:
            if index == told or not forget:
                self.say((index,), self._vote("precommit", round_, value if index == told else None))

    def _pull_to(self, height: int, round_: int) -> None:
        if height == self.state.height and round_ not in self.voted:
            self.voted.add(round_)
            self._vote_all(round_, None)

    def _lead_at(self, height: int, round_: int) -> None:
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
            claimed = self.rng.choice([None, *range(round_)]) if self.rng.random() < 0.5 else None
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
        self.hear_proposal(proposal)

    def _vote_all(self, round_: int, value: Digest | None) -> None:
        for kind in VOTE_KINDS:
            self.broadcast(self._vote(kind, round_, value))

    def _vote(self, kind: VoteKind, round_: int, value: Digest | None) -> Vote:
        """Where it forgets a lock, half of the time it claims one that never was, which no two messages disprove."""
        claims = kind == "prevote" and value is not None and self.rng.random() < 0.5
        later = round_ - 1 > self.world.secret_round(self.state.height)
        lock = Choice(round=Round(round_ - 1), value=value) if claims and later and value is not None else None
        vote = self.unguarded(SignVote(kind, Round(round_), value, lock))
        assert isinstance(vote, Vote)
        self.world.signs(self, vote)
        return vote
