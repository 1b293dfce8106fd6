"""The tally: who voted what in which round of one height. Immutable; bounded whatever the validators send.

One vote a (kind, round, validator) counts; a second one for another value is an equivocation. The exception is the
paper's own: it counts messages, not voters, so a polka that contains an equivocator's other vote is still a polka. A
complete certificate is therefore added whole (`certified=True`). Quorums of one round intersect in an honest
validator, so there is at most one such value beside the first votes, and at most two votes a slot are ever kept.

Rounds far above the current one are remembered as one vote a validator: enough for the f+1 of line 55. A later one
takes its place only if it is twice as far ahead, so that whoever counts upwards through the rounds changes nothing
but a few times, and fills no log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from nsllm.consensus.evidence import Evidence, amnesia, contradicts, double_vote
from nsllm.consensus.vote import Vote, VoteKind
from nsllm.ids import Address, Digest, Round

MAX_ROUNDS_AHEAD: Final = 4
"""Rounds above the current one whose votes are kept in full."""

Slot = tuple[VoteKind, Round]


_NOBODY: Final[Mapping[Address, tuple[Vote, ...]]] = {}


class Tally(msgspec.Struct, frozen=True):
    """Votes of one height by slot and validator, in order of arrival."""

    slots: Mapping[Slot, Mapping[Address, tuple[Vote, ...]]] = msgspec.field(
        default_factory=dict[Slot, dict[Address, tuple[Vote, ...]]]
    )
    far: Mapping[Address, Vote] = msgspec.field(default_factory=dict[Address, Vote])
    """Of each validator a high vote above the horizon: at least half as far above it as the highest."""
    reached: Mapping[Address, Round] = msgspec.field(default_factory=dict[Address, Round])
    """Highest round in which each validator was heard."""
    accused: frozenset[tuple[Slot, Address]] = frozenset()

    def add(self, vote: Vote, horizon: int, *, certified: bool = False) -> tuple[Tally, Evidence | None]:
        """The tally with `vote`; beside it the proof that it contradicts an earlier one, the first time that happens.

        Args:
            vote: of this height, checked.
            horizon: last round that is kept in full.
            certified: the vote is part of a complete quorum for its value, and counts beside an earlier one.
        """
        if vote.round > horizon:
            known = self.far.get(vote.validator)
            if known is not None and vote.round - horizon < 2 * (known.round - horizon):
                return self, None
            return replace(self.heard(vote.validator, vote.round), far={**self.far, vote.validator: vote}), None
        slot: Slot = (vote.kind, vote.round)
        voters = self.slots.get(slot, _NOBODY)
        before = voters.get(vote.validator, ())
        counted = False
        if before:
            says = vote.says()
            for known in before:
                if known.says() == says:
                    return self, None
                counted = counted or known.value == vote.value
        tally, evidence = self, None
        if (slot, vote.validator) not in self.accused:
            evidence = double_vote(before[0], vote) if before else self._amnesia(vote)
            if evidence is not None:
                tally = replace(self, accused=self.accused | {(slot, vote.validator)})
        if before and (not certified or counted or len(before) > 1):
            return tally, evidence
        reached = tally.reached
        if reached.get(vote.validator, -1) < vote.round:
            reached = {**reached, vote.validator: vote.round}
        slots = {**self.slots, slot: {**voters, vote.validator: (*before, vote)}}
        return Tally(slots=slots, far=tally.far, reached=reached, accused=tally.accused), evidence

    def _amnesia(self, vote: Vote) -> Evidence | None:
        """A vote of the same validator whose lock `vote` forgets, or that forgets the lock of `vote`."""
        if not vote.round and vote.kind == "prevote":
            return None
        if vote.kind == "precommit" and self.reached.get(vote.validator, vote.round) <= vote.round:
            return None
        for (kind, round_), voters in self.slots.items():
            if kind == vote.kind or not (round_ < vote.round if kind == "precommit" else vote.round < round_):
                continue
            for known in voters.get(vote.validator, ()):
                precommit, prevote = (known, vote) if kind == "precommit" else (vote, known)
                if contradicts(precommit, prevote):
                    return amnesia(precommit, prevote)
        return None

    def heard(self, validator: Address, round_: Round) -> Tally:
        """The tally that knows `validator` to have reached `round_`."""
        if self.reached.get(validator, -1) >= round_:
            return self
        return replace(self, reached={**self.reached, validator: round_})

    def near(self, horizon: int) -> tuple[Tally, tuple[Evidence, ...]]:
        """The tally with the far votes that a new horizon has come to cover counted in full, and what they prove."""
        if all(vote.round > horizon for vote in self.far.values()):
            return self, ()
        tally = replace(self, far={a: vote for a, vote in self.far.items() if vote.round > horizon})
        found: list[Evidence] = []
        for vote in self.far.values():
            if vote.round <= horizon:
                tally, evidence = tally.add(vote, horizon)
                found += [evidence] if evidence is not None else []
        return tally, tuple(found)

    def voters(self, kind: VoteKind, round_: Round) -> int:
        """Validators that voted in the slot, each once, whatever for."""
        return len(self.slots.get((kind, round_), _NOBODY))

    def votes(self, kind: VoteKind, round_: Round) -> tuple[Vote, ...]:
        """First vote of each validator in the slot, ascending by validator."""
        voters = self.slots.get((kind, round_), _NOBODY)
        return tuple(voters[validator][0] for validator in sorted(voters))

    def votes_for(self, kind: VoteKind, round_: Round, value: Digest | None) -> tuple[Vote, ...]:
        """Votes for `value` in the slot, one a validator, ascending by validator."""
        voters = self.slots.get((kind, round_), _NOBODY)
        return tuple(vote for validator in sorted(voters) for vote in voters[validator] if vote.value == value)

    def count(self, kind: VoteKind, round_: Round, value: Digest | None) -> int:
        """Validators that voted for `value` in the slot."""
        voters = self.slots.get((kind, round_), _NOBODY)
        return sum([vote.value == value for votes in voters.values() for vote in votes])

    def leaders(self, kind: VoteKind, round_: Round, enough: int) -> tuple[Digest, ...]:
        """Values with at least `enough` votes in the slot, ascending."""
        voters = self.slots.get((kind, round_), _NOBODY)
        if len(voters) < enough:  # each stands behind a value once
            return ()
        counts: dict[Digest, int] = {}
        for votes in voters.values():
            for vote in votes:
                if vote.value is not None:
                    counts[vote.value] = counts.get(vote.value, 0) + 1
        return tuple(sorted(value for value, count in counts.items() if count >= enough))

    def rounds(self, kind: VoteKind, enough: int) -> tuple[Round, ...]:
        """Rounds in which at least `enough` validators cast a vote of `kind`, ascending."""
        rounds = [slot[1] for slot, voters in self.slots.items() if len(voters) >= enough and slot[0] == kind]
        return tuple(sorted(rounds)) if rounds else ()

    def holds(self, vote: Vote) -> bool:
        """Whether exactly this vote is counted already (so its signature need not be checked again)."""
        return vote in self.slots.get((vote.kind, vote.round), {}).get(vote.validator, ())

    def reached_by(self, count: int) -> int:
        """Highest round that at least `count` validators have reached; -1 if fewer were heard at all."""
        rounds = sorted(self.reached.values())
        return rounds[-count] if len(rounds) >= count else -1
