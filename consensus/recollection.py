"""Recollection: what the others have heard a validator say, which it asks them before it signs anything.

Log and guard remember what was signed, as long as they are not an old copy that somebody put back. So whoever starts
listens until a quorum, itself among it, has told where it stands and what it has heard last over the asker's signature;
the guard takes in what is later than it remembers (`SignerGuard.learn`). Without a quorum nothing would be decided
anyway. Answers name the moment of the question, so that none from an earlier life counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nsllm.consensus.core import State
from nsllm.consensus.evidence import SignedProposal, signed_part
from nsllm.consensus.message import Recalled
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Address, Height, TimeMs


class Recollection:
    """Who has answered the question of one start, and where they stand.

    Args:
        asked_ms: when it is asked, by our clock.
    """

    def __init__(self, asked_ms: TimeMs) -> None:
        self.asked_ms = asked_ms
        self._stand: dict[Address, Height] = {}

    def told(self, sender: Address, answer: Recalled) -> None:
        """Take in an answer; one to an earlier question says nothing about what was heard since."""
        if answer.asked_ms == self.asked_ms:
            self._stand[sender] = answer.height

    def lacking(self, others: Iterable[Address]) -> tuple[Address, ...]:
        """Those that have not answered."""
        return tuple(other for other in others if other not in self._stand)

    def height(self, validators: ValidatorSet) -> Height | None:
        """Where the others are: one honest validator at least has reached it. None: too few have answered."""
        heights = sorted((at for other, at in self._stand.items() if other in validators), reverse=True)
        if len(heights) + 1 < validators.quorum:
            return None
        return heights[validators.faults] if validators.faults < len(heights) else Height(0)


def recall(
    asker: Address, asked_ms: TimeMs, state: State, past: State | None, kept: Sequence[Vote | Proposal]
) -> Recalled:
    """The answer: the asker's last vote and last proposal that we have.

    Args:
        asker: who asks.
        asked_ms: when it asked.
        state: of the height being decided.
        past: in which the height before was left.
        kept: messages of the next height.
    """
    states = [state] if past is None else [past, state]
    votes = [vote for vote in kept if isinstance(vote, Vote)]
    proposals = [proposal for proposal in kept if isinstance(proposal, Proposal)]
    for known in states:
        votes += [vote for voters in known.tally.slots.values() for vote in voters.get(asker, ())]
        votes += [known.tally.far[asker]] if asker in known.tally.far else []
        proposals += [proposal for proposal in known.proposals.values() if proposal.proposer == asker]
    vote = max(votes, key=lambda vote: (vote.height, vote.round, vote.kind == "precommit"), default=None)
    last = max(proposals, key=lambda proposal: (proposal.height, proposal.round), default=None)
    proposal: SignedProposal | None = None if last is None else signed_part(last)
    return Recalled(asked_ms=asked_ms, height=state.height, vote=vote, proposal=proposal)
