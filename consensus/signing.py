"""Signing what the core wants said: the guard signs, and the signed message is also our own input."""

from __future__ import annotations

from typing import overload

from nsllm.consensus.effects import SignProposal, SignVote
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.inputs import Input, ProposalReceived, VoteReceived
from nsllm.consensus.vote import Proposal, ProposalBody, Vote, VoteBody
from nsllm.ids import Address, Epoch, Height


def sign(
    guard: SignerGuard, effect: SignProposal | SignVote, *, epoch: Epoch, height: Height
) -> tuple[Vote | Proposal, Input]:
    """The signed vote or proposal, and the input that it is to our own core.

    Raises:
        GuardError: it would contradict what was signed before.
        OwnFault: the guard's file cannot be written; nothing was signed.
    """
    if isinstance(effect, SignVote):
        vote = guard.vote(body_of(effect, epoch=epoch, height=height, signer=guard.address))
        return vote, VoteReceived(vote=vote)
    body = body_of(effect, epoch=epoch, height=height, signer=guard.address)
    proposal = guard.proposal(body, effect.block, effect.polka)
    return proposal, ProposalReceived(proposal=proposal, valid=True)


@overload
def body_of(effect: SignVote, *, epoch: Epoch, height: Height, signer: Address) -> VoteBody: ...
@overload
def body_of(effect: SignProposal, *, epoch: Epoch, height: Height, signer: Address) -> ProposalBody: ...
def body_of(
    effect: SignProposal | SignVote, *, epoch: Epoch, height: Height, signer: Address
) -> VoteBody | ProposalBody:
    """What `signer` says at a height if it does as the core wants."""
    if isinstance(effect, SignVote):
        return VoteBody(
            kind=effect.kind,
            epoch=epoch,
            height=height,
            round=effect.round,
            value=effect.value,
            validator=signer,
            lock=effect.lock,
            valid_round=effect.valid_round,
        )
    return ProposalBody(
        epoch=epoch,
        height=height,
        round=effect.round,
        value=effect.block.header.id(),
        valid_round=effect.valid_round,
        proposer=signer,
    )
