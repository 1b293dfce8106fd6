"""Hindsight: what is still learnt about the height decided last, whose votes count no more.

A validator that tells one half of the others one thing and the other half another is seen through by nobody, as long as
each half decides by itself. So whoever has decided a height shows the votes of the deciding round to one other
validator, another one each time, and compares what comes in with what it counted.
"""

from __future__ import annotations

from nsllm.consensus.core import State
from nsllm.consensus.evidence import Evidence, double_proposal
from nsllm.consensus.message import Body, PolkaCertificate, RoundCertificate
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Address, Round


class Hindsight:
    """Remembers the state in which one height was left."""

    def __init__(self) -> None:
        self.past: State | None = None
        """Of the height decided last; None before the first."""

    def keep(self, state: State, round_: Round) -> list[tuple[Address, Body]]:
        """Remember `state`, in whose height `round_` decided; whom to show which votes."""
        self.past = state
        members = state.validators.members
        if len(members) == 1:
            return []
        step = 1 + state.height % (len(members) - 1)
        other = members[(members.index(state.me) + step) % len(members)]
        prevotes, precommits = (state.tally.votes(kind, round_) for kind in ("prevote", "precommit"))
        notes: list[Body] = [PolkaCertificate(votes=prevotes)] if prevotes else []
        notes += [RoundCertificate(votes=precommits)] if precommits else []
        return [(other, note) for note in notes]

    def contradictions(self, body: Body) -> list[Evidence]:
        """What a message of the remembered height proves together with what was counted there.

        The message's own signatures are not checked: whoever takes the evidence checks it.
        """
        past = self.past
        if past is None:
            return []
        match body:
            case Vote():
                votes: tuple[Vote, ...] = (body,)
            case PolkaCertificate() | RoundCertificate():
                votes = body.votes
            case Proposal():
                known = past.proposals.get(body.round)
                if known is None or body.height != past.height or known.says() == body.says():
                    return []
                return [double_proposal(known, body)] if known.proposer == body.proposer else []
            case _:
                return []
        found = (past.tally.add(vote, past.horizon)[1] for vote in votes if vote.height == past.height)
        return [evidence for evidence in found if evidence is not None]
