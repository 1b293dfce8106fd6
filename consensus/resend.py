"""What is said again while a height is undecided, and what is answered to who asks. Pure: state in, messages out.

Everything here was sent before or is a proof; nothing is signed. It is enough to bring a validator that missed any
message to where the sender stands: the votes of this round, the proof that the last one could be left, the polka that
a lock or a repeated proposal rests on, and the proposal for whoever has not prevoted for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from nsllm.consensus.core import State, Step, missing
from nsllm.consensus.message import Body, PolkaCertificate, Request, RoundCertificate
from nsllm.consensus.vote import VoteKind
from nsllm.ids import Address, Round

VOTE_KINDS: tuple[VoteKind, ...] = ("prevote", "precommit")


class AnswerRate:
    """At most one answer to one sender in an interval."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._answered: dict[Address, float] = {}

    def take(self, sender: Address, now_s: float) -> bool:
        """Whether `sender` may have an answer now; if so, the interval begins."""
        if now_s - self._answered.get(sender, float("-inf")) < self._interval_s:
            return False
        self._answered[sender] = now_s
        return True


def last_words(state: State, others: Sequence[Address]) -> list[tuple[Body, Sequence[Address]]]:
    """Messages to repeat, each with its addressees."""
    if state.step is Step.NEW:
        return [(Request(height=state.height, round=state.round), others)]
    words: list[tuple[Body, Sequence[Address]]] = [(proof, others) for proof in _round_proof(state)]
    proposal = state.proposals.get(state.round)
    if proposal is not None and proposal.proposer == state.me:
        have = {vote.validator for vote in state.tally.votes_for("prevote", state.round, proposal.value)}
        words.append((proposal, [other for other in others if other not in have]))
    for kind in VOTE_KINDS:
        words.extend((vote, others) for vote in state.tally.votes(kind, state.round) if vote.validator == state.me)
    if state.valid is not None:
        votes = state.tally.votes_for("prevote", state.valid.round, state.valid.value)
        words.append((PolkaCertificate(votes=votes), others))
    lacking = missing(state)
    if lacking is not None:
        words.append((Request(height=state.height, round=state.round, value=lacking[1]), others))
    return words


def answer_to(state: State, request: Request) -> list[Body]:
    """Messages that help a validator of the same height: the block that it lacks, the way out of its round."""
    answers: list[Body] = []
    if request.value is not None and (candidate := state.candidates.get(request.value)) is not None:
        answers.append(candidate.proposal)
    if request.round < state.round:
        answers.extend(_round_proof(state))
    return answers


def _round_proof(state: State) -> list[RoundCertificate]:
    """The precommits with which the round before could be left, if we have them."""
    if state.round == 0:
        return []
    before = Round(state.round - 1)
    votes = state.tally.votes("precommit", before)
    return [RoundCertificate(votes=votes)] if len(votes) >= state.quorum else []
