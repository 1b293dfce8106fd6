"""Tendermint's core for one height: `step(state, input) -> (state, effects)`. No IO, no clock, no randomness.

Source: Buchman, Kwon, Milosevic, "The latest gossip on BFT consensus", arXiv 1807.04938, algorithm 1; each arm cites
its lines. 2f+1 in the paper is `ValidatorSet.quorum` here, which is safe for every n. Where this differs:

* line 10: `Start` comes when a block is wanted; until then messages are counted and no rule fires;
* line 20: the proposer arms its propose timer too, because its application may fail to build a block;
* lines 36 and 49: a block counts as proposed in whatever round it came, since its id holds no round;
* line 50: a quorum's precommits overrule our own valid(v), which judges the header's time by a local clock; at least
  one honest validator of that quorum found the block valid;
* line 52: the next height is another `State`;
* line 55: f+1 validators in rounds at least r suffice to enter r; they need not be in the same round;
* after line 41 the polka is relayed, and at line 67 the precommits: direct streams lack the gossip that the paper's
  proof assumes;
* lines 24-26, 30-32 and 59: a prevote states, signed, the lock that it is cast under and its proposal's valid round,
  so that a broken lock can be proved (`nsllm.consensus.evidence`; ADR 10).

Who broke the algorithm is known from two of its messages: two of one slot (equivocation), or a precommit of round r
and a prevote of a later round whose stated lock is older than r, or of r but not what was precommitted (amnesia; lines
38-40 lock whatever is precommitted, and nothing unlocks). A prevote that contradicts the lock it states itself (lines
23 and 29) is refused before it gets here. Not provable from two messages: that a stated valid round or a later lock
had no polka.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, assert_never

import msgspec
from msgspec.structs import replace

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.effects import (
    Accuse,
    BuildValue,
    Decide,
    Effect,
    Relay,
    Schedule,
    SignProposal,
    SignVote,
)
from nsllm.consensus.evidence import double_proposal
from nsllm.consensus.inputs import (
    CertificateReceived,
    Input,
    ProposalReceived,
    Start,
    TimedOut,
    TimerStep,
    ValueBuilt,
    VoteReceived,
)
from nsllm.consensus.message import PolkaCertificate, RoundCertificate
from nsllm.consensus.tally import MAX_ROUNDS_AHEAD, Tally
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Choice, Proposal, Vote
from nsllm.ids import Address, Digest, Height, Round

FIRST_ROUND: Final = Round(0)


class Step(IntEnum):
    """The paper's step_p, in order, and the two ends that a state of its own needs."""

    NEW = 0
    PROPOSE = 1
    PREVOTE = 2
    PRECOMMIT = 3
    DECIDED = 4


NEW, PROPOSE, PREVOTE, PRECOMMIT, DECIDED = Step
"""For the rules: a member by the name of its class takes longer than a whole rule that does not fire."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block that was proposed, the last proposal that carried it, and the application's verdict."""

    proposal: Proposal
    valid: bool


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One validator's state at one height. A struct, since its copies are most of what the core does."""

    validators: ValidatorSet
    me: Address
    height: Height
    round: Round = FIRST_ROUND
    step: Step = NEW
    locked: Choice | None = None
    """lockedValue and lockedRound."""
    valid: Choice | None = None
    """validValue and validRound."""
    proposals: Mapping[Round, Proposal] = msgspec.field(default_factory=dict[Round, Proposal])
    """First proposal of each round, from the round before the current one up to the horizon."""
    candidates: Mapping[Digest, Candidate] = msgspec.field(default_factory=dict[Digest, Candidate])
    tally: Tally = msgspec.field(default_factory=Tally)
    prevote_timer: bool = False
    """Line 34 has fired in this round."""
    precommit_timer: bool = False
    """Line 47 has fired in this round."""
    accused: frozenset[Round] = frozenset()
    """Rounds whose proposer was reported."""

    @property
    def horizon(self) -> int:
        """Last round whose messages are kept in full."""
        return self.round + MAX_ROUNDS_AHEAD

    @property
    def quorum(self) -> int:
        """Votes that the paper calls 2f+1."""
        return self.validators.quorum

    @property
    def honest(self) -> int:
        """f+1: so many validators cannot all be faulty."""
        return self.validators.faults + 1


Turn = tuple[State, tuple[Effect, ...]]


def step(state: State, event: Input) -> Turn:
    """The state after `event`, and what is to be done, in order.

    An event that changes nothing returns `state` itself, and no effects.
    """
    if state.step is DECIDED:
        return state, ()
    after, effects = _take(state, event)
    if after is state and not effects:
        return state, ()
    return _settle(after, effects)


def missing(state: State) -> tuple[Round, Digest] | None:
    """A block that a quorum voted for but that never came: what to ask the others for."""
    for round_ in state.tally.rounds("precommit", state.quorum):
        for value in state.tally.leaders("precommit", round_, state.quorum):
            if value not in state.candidates:
                return round_, value
    for value in state.tally.leaders("prevote", state.round, state.quorum):
        if value not in state.candidates:
            return state.round, value
    return None


def wants(state: State, proposal: Proposal) -> bool:
    """Whether this proposal could change the state: asked before the application is made to judge its block."""
    known = state.candidates.get(proposal.value)
    first = proposal.round not in state.proposals
    if proposal.round > state.horizon or state.step is DECIDED:
        return False
    if proposal.round >= state.round and first:
        return True
    conflict = not first and state.proposals[proposal.round].says() != proposal.says()
    if conflict and proposal.round not in state.accused:
        return True
    return known is None and _backed(state, proposal)


def is_begun(state: State) -> bool:
    """Whether the first round's proposer, or f+1 validators, have begun this height: then a block is wanted."""
    reached = state.tally.reached
    return state.validators.proposer(state.height, FIRST_ROUND) in reached or len(reached) >= state.honest


def _take(state: State, event: Input) -> Turn:  # noqa: PLR0911 - one return an input
    """What the event itself changes, before the rules look."""
    match event:
        case Start():
            # line 10
            return _start_round(state, FIRST_ROUND) if state.step is NEW else (state, ())
        case ProposalReceived():
            return _take_proposal(state, event)
        case VoteReceived(vote=vote):
            return _take_votes(state, (vote,), certified=False)
        case CertificateReceived(votes=votes):
            return _take_votes(state, votes, certified=_is_certificate(state, votes))
        case ValueBuilt(round=round_, block=block):
            # line 18: the answer to getValue()
            if state.step is PROPOSE and round_ == state.round and round_ not in state.proposals:
                return state, (SignProposal(round_, block, None, ()),)
            return state, ()
        case TimedOut(step=timer, round=round_):
            return _time_out(state, timer, round_)
        case _:
            assert_never(event)


def _take_proposal(state: State, event: ProposalReceived) -> Turn:
    proposal = event.proposal
    mine = state.validators.proposer(state.height, proposal.round) == proposal.proposer
    if proposal.height != state.height or not mine or not wants(state, proposal):
        return state, ()
    effects: tuple[Effect, ...] = ()
    first = state.proposals.get(proposal.round)
    if first is not None and first.says() != proposal.says() and proposal.round not in state.accused:
        effects = (Accuse(double_proposal(first, proposal)),)
        state = replace(state, accused=state.accused | {proposal.round})
    if first is None and proposal.round >= state.round:
        state = replace(state, proposals={**state.proposals, proposal.round: proposal})
    elif not _backed(state, proposal):
        return state, effects
    known = state.candidates.get(proposal.value)
    valid = event.valid or (known is not None and known.valid)
    return (
        replace(
            state,
            candidates={**state.candidates, proposal.value: Candidate(proposal, valid)},
            tally=state.tally.heard(proposal.proposer, proposal.round),
        ),
        effects,
    )


def _take_votes(state: State, votes: tuple[Vote, ...], *, certified: bool) -> Turn:
    tally = state.tally
    effects: list[Effect] = []
    for vote in votes:
        if vote.height != state.height or vote.validator not in state.validators:
            continue
        tally, evidence = tally.add(vote, state.horizon, certified=certified)
        if evidence is not None:
            effects.append(Accuse(evidence))
    return (state if tally is state.tally else replace(state, tally=tally)), tuple(effects)


def _time_out(state: State, timer: TimerStep, round_: Round) -> Turn:  # noqa: PLR0911 - two returns a timer
    if round_ != state.round:
        return state, ()
    match timer:
        case "propose":
            # lines 57-60
            if state.step is not PROPOSE:
                return state, ()
            return replace(state, step=PREVOTE), (SignVote("prevote", round_, None, state.locked),)
        case "prevote":
            # lines 61-64
            if state.step is not PREVOTE:
                return state, ()
            return replace(state, step=PRECOMMIT), (SignVote("precommit", round_, None),)
        case "precommit":
            # lines 65-67, and the precommits that let us go
            if state.step is NEW or not state.precommit_timer:
                return state, ()
            proof = Relay(RoundCertificate(votes=state.tally.votes("precommit", round_)))
            after, effects = _start_round(state, Round(round_ + 1))
            return after, (proof, *effects)
        case _:
            assert_never(timer)


def _start_round(state: State, round_: Round) -> Turn:
    """Lines 11-21: StartRound(round)."""
    state, accusations = _prune(
        replace(state, round=round_, step=PROPOSE, prevote_timer=False, precommit_timer=False),
    )
    effects = (*accusations, Schedule("propose", round_))
    if state.validators.proposer(state.height, round_) != state.me:
        return state, effects
    if state.valid is None:
        return state, (*effects, BuildValue(round_))
    block = state.candidates[state.valid.value].proposal.block
    polka = state.tally.votes_for("prevote", state.valid.round, state.valid.value)
    return state, (*effects, SignProposal(round_, block, state.valid.round, polka))


def _prune(state: State) -> Turn:
    """Forget proposals two rounds old, and blocks that nothing points at; count what the new horizon covers."""
    proposals = {r: proposal for r, proposal in state.proposals.items() if r >= state.round - 1}
    kept = {proposal.value for proposal in proposals.values()}
    kept |= {choice.value for choice in (state.valid, state.locked) if choice is not None}
    for round_ in state.tally.rounds("precommit", state.honest):
        kept.update(state.tally.leaders("precommit", round_, state.honest))
    candidates = {value: candidate for value, candidate in state.candidates.items() if value in kept}
    tally, found = state.tally.near(state.horizon)
    accusations = tuple(Accuse(evidence) for evidence in found)
    return replace(state, proposals=proposals, candidates=candidates, tally=tally), accusations


def _backed(state: State, proposal: Proposal) -> bool:
    """Whether an honest validator voted for this value in the proposal's round: then it is worth a place."""
    tally, round_, value = state.tally, proposal.round, proposal.value
    return max(tally.count("prevote", round_, value), tally.count("precommit", round_, value)) >= state.honest


def _is_certificate(state: State, votes: tuple[Vote, ...]) -> bool:
    first = votes[0]
    same = all((v.kind, v.round, v.value) == (first.kind, first.round, first.value) for v in votes)
    return same and first.value is not None and len({v.validator for v in votes}) >= state.quorum


def _settle(state: State, effects: tuple[Effect, ...]) -> Turn:
    """Apply the rules until none of them fires."""
    while state.step is not NEW and state.step is not DECIDED:
        for rule in RULES:
            turn = rule(state)
            if turn is not None:
                state, effects = turn[0], effects + turn[1]
                break
        else:
            break
    return state, effects


def _decide(state: State) -> Turn | None:
    """Lines 49-54: a proposal and a quorum of precommits for it, of one round, whichever."""
    for round_ in state.tally.rounds("precommit", state.quorum):
        for value in state.tally.leaders("precommit", round_, state.quorum):
            candidate = state.candidates.get(value)
            if candidate is None:
                continue
            block = candidate.proposal.block
            precommits = tuple(
                Precommit(validator=vote.validator, signature=vote.signature)
                for vote in state.tally.votes_for("precommit", round_, value)
            )
            certificate = Certificate(header=block.header, round=round_, precommits=precommits)
            decided = Decide(DecidedBlock(block=block, certificate=certificate))
            return replace(state, step=DECIDED), (decided,)
    return None


def _skip(state: State) -> Turn | None:
    """Lines 55-56: f+1 validators are in later rounds."""
    round_ = state.tally.reached_by(state.honest)
    return _start_round(state, Round(round_)) if round_ > state.round else None


def _prevote(state: State) -> Turn | None:
    """Lines 22-33: the round's proposal, new or proposed again with its polka."""
    proposal = state.proposals.get(state.round)
    if state.step is not PROPOSE or proposal is None:
        return None
    value, earlier, locked = proposal.value, proposal.valid_round, state.locked
    if earlier is None:
        # line 23
        free = locked is None or locked.value == value
    else:
        # lines 28-29
        proved = earlier < state.round and state.tally.count("prevote", earlier, value) >= state.quorum
        if not proved:
            return None
        free = locked is None or locked.round <= earlier or locked.value == value
    # lines 24-26, 30-32
    vote = value if free and state.candidates[value].valid else None
    proof = None if vote is None else earlier
    return replace(state, step=PREVOTE), (SignVote("prevote", state.round, vote, locked, proof),)


def _polka(state: State) -> Turn | None:
    """Lines 36-43: a valid proposal and a quorum of prevotes for it, for the first time in this round."""
    if state.step < PREVOTE or (state.valid is not None and state.valid.round == state.round):
        return None
    for value in state.tally.leaders("prevote", state.round, state.quorum):
        candidate = state.candidates.get(value)
        if candidate is None or not candidate.valid:
            continue
        choice = Choice(round=state.round, value=value)
        # lines 42-43
        after = replace(state, valid=choice)
        if state.step is not PREVOTE:
            return after, ()
        # lines 37-41
        proof = PolkaCertificate(votes=state.tally.votes_for("prevote", state.round, value))
        after = replace(after, locked=choice, step=PRECOMMIT)
        return after, (SignVote("precommit", state.round, value), Relay(proof))
    return None


def _nil(state: State) -> Turn | None:
    """Lines 44-46: a quorum of prevotes for nil. The lock stays: nothing here unlocks."""
    if state.step is not PREVOTE or state.tally.count("prevote", state.round, None) < state.quorum:
        return None
    return replace(state, step=PRECOMMIT), (SignVote("precommit", state.round, None),)


def _wait_prevotes(state: State) -> Turn | None:
    """Lines 34-35: a quorum of prevotes for anything."""
    if state.prevote_timer or state.step is not PREVOTE:
        return None
    if state.tally.voters("prevote", state.round) < state.quorum:
        return None
    return replace(state, prevote_timer=True), (Schedule("prevote", state.round),)


def _wait_precommits(state: State) -> Turn | None:
    """Lines 47-48: a quorum of precommits for anything."""
    if state.precommit_timer or state.tally.voters("precommit", state.round) < state.quorum:
        return None
    return replace(state, precommit_timer=True), (Schedule("precommit", state.round),)


RULES: Final[tuple[Callable[[State], Turn | None], ...]] = (
    _decide,
    _skip,
    _prevote,
    _polka,
    _nil,
    _wait_prevotes,
    _wait_precommits,
)
"""In this order: what ends the height, then what ends the round, then the steps, then the waiting."""
