"""Signing what the core wants said: the guard signs, and the signed message is also our own input."""

from __future__ import annotations

from nsllm.consensus.effects import SignProposal, SignVote
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.inputs import Input, ProposalReceived, VoteReceived
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Epoch, Height


def sign(
    guard: SignerGuard, effect: SignProposal | SignVote, *, epoch: Epoch, height: Height
) -> tuple[Vote | Proposal, Input]:
    """The signed vote or proposal, and the input that it is to our own core.

    Raises:
        GuardError: it would contradict what was signed before.
        OwnFault: the guard's file cannot be written; nothing was signed.
    """
    if isinstance(effect, SignVote):
        vote = guard.vote(
            kind=effect.kind,
            epoch=epoch,
            height=height,
            round_=effect.round,
            value=effect.value,
            lock=effect.lock,
            valid_round=effect.valid_round,
        )
        return vote, VoteReceived(vote=vote)
    proposal = guard.proposal(
        effect.block,
        epoch=epoch,
        height=height,
        round_=effect.round,
        valid_round=effect.valid_round,
        polka=effect.polka,
    )
    return proposal, ProposalReceived(proposal=proposal, valid=True)
