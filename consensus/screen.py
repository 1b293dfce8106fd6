"""The screen: what a message must satisfy before the core may see it. Pure checks, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nsllm.consensus.block import Block
from nsllm.consensus.errors import BlockError, VoteError
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote, VoteKind, check_signature, keeps_lock
from nsllm.ids import Digest, Height, NetworkId, hex0x, short

Known = Callable[[Vote], bool]
"""Whether this very vote was checked before."""


def check_vote(network: NetworkId, validators: ValidatorSet, vote: Vote, known: Known) -> None:
    """Pass silently if a validator of this epoch signed the vote, and it keeps the lock that it states.

    Raises:
        VoteError: another epoch, not a validator, or against its own lock.
        SignatureError: forged.
    """
    if known(vote):
        return
    if vote.epoch != validators.epoch:
        raise VoteError(f"{vote.kind} of epoch {vote.epoch}, this is epoch {validators.epoch}")
    if vote.validator not in validators:
        raise VoteError(f"{vote.kind} by {hex0x(vote.validator)}, who is not a validator of epoch {vote.epoch}")
    if not keeps_lock(vote.value, vote.lock, vote.valid_round):
        raise VoteError(f"prevote of round {vote.round} for a value that its own lock forbids")
    check_signature(vote, network)


def check_votes(
    network: NetworkId, validators: ValidatorSet, votes: Sequence[Vote], kind: VoteKind, known: Known
) -> None:
    """Pass silently if the votes are of one slot, by distinct validators, each signed.

    Raises:
        VoteError: mixed slots, another kind, a validator twice, another epoch, not a validator.
        SignatureError: forged.
    """
    first = votes[0]
    for vote in votes:
        if vote.kind != kind or (vote.height, vote.round) != (first.height, first.round):
            raise VoteError(f"a certificate of {kind}s mixes in a {vote.kind} of {(vote.height, vote.round)}")
    if len({vote.validator for vote in votes}) != len(votes):
        raise VoteError(f"a certificate of {kind}s names a validator twice")
    for vote in votes:
        check_vote(network, validators, vote, known)


def check_proposal(network: NetworkId, validators: ValidatorSet, proposal: Proposal, known: Known) -> None:
    """Pass silently if the round's proposer signed it and its parts belong together.

    Raises:
        VoteError: not that round's proposer, another epoch or height, a polka of something else.
        BlockError: a body or a builder that the header contradicts.
        SignatureError: forged.
    """
    place = f"height {proposal.height} round {proposal.round}"
    expected = validators.proposer(proposal.height, proposal.round)
    if proposal.epoch != validators.epoch:
        raise VoteError(f"proposal of epoch {proposal.epoch}, this is epoch {validators.epoch}")
    if proposal.proposer != expected:
        raise VoteError(f"{hex0x(proposal.proposer)} proposes at {place}, where {hex0x(expected)} may")
    if proposal.valid_round is not None and proposal.valid_round >= proposal.round:
        raise VoteError(f"proposal at {place} claims a polka of round {proposal.valid_round}")
    header = proposal.block.header
    if (header.height, header.epoch) != (proposal.height, proposal.epoch):
        raise VoteError(f"proposal at {place} carries a block of height {header.height} epoch {header.epoch}")
    if header.proposer not in validators or (proposal.valid_round is None and header.proposer != proposal.proposer):
        raise BlockError(f"new block at {place} names builder {hex0x(header.proposer)}")
    check_signature(proposal, network)
    check_body(network, proposal.block)
    if proposal.polka:
        check_votes(network, validators, proposal.polka, "prevote", known)
        for vote in proposal.polka:
            if (vote.height, vote.round, vote.value) != (proposal.height, proposal.valid_round, proposal.value):
                raise VoteError(f"proposal at {place} proves its valid round with votes for something else")


def check_body(network: NetworkId, block: Block) -> None:
    """Pass silently if the body is the one that the header names.

    Raises:
        BlockError: names both digests.
    """
    found = block.body.digest(network)
    if found != block.header.body_digest:
        raise BlockError(f"body {short(found)} under a header that names body {short(block.header.body_digest)}")


def check_link(validators: ValidatorSet, block: Block, height: Height, parent: Digest) -> None:
    """Pass silently if the block stands right above `parent`.

    Raises:
        BlockError: another height, parent, epoch or validator set.
    """
    header = block.header
    if header.height != height:
        raise BlockError(f"block of height {header.height}, expected {height}")
    if header.parent != parent:
        raise BlockError(f"block {height} has parent {short(header.parent)}, ours is {short(parent)}")
    if header.epoch != validators.epoch or header.validators_hash != validators.digest():
        raise BlockError(f"block {height} names epoch {header.epoch} or validators that are not this network's")
