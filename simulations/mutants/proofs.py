"""Directed forgeries: certificates, votes and proposals that prove less than they claim. They must be refused."""

from __future__ import annotations

from functools import partial
from typing import cast

import trio
from msgspec.structs import replace

from nsllm.clock import Clock
from nsllm.consensus.certificate import Precommit
from nsllm.consensus.core import State
from nsllm.consensus.errors import BlockError, CertificateError, VoteError
from nsllm.consensus.horizon import Horizon
from nsllm.consensus.intake import Intake
from nsllm.consensus.message import HeightCertificate
from nsllm.consensus.ports import Application
from nsllm.consensus.screen import check_link, check_proposal, check_vote, check_votes
from nsllm.consensus.sync import Tip, check_decided
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Vote
from nsllm.errors import SignatureError
from nsllm.ids import Digest, Height, NetworkId, Round
from nsllm.simulations.mutants.holds import holds, refused
from nsllm.simulations.mutants.made import (
    NETWORK,
    certify,
    make_block,
    make_keys,
    make_set,
    sign_proposal,
    sign_vote,
)


def a_certificate_is_a_quorum() -> None:
    """Two of four signers; one signer twice; a stranger."""
    keys = make_keys(5)
    validators = make_set(keys[:4])
    good = certify(keys[:4], make_block(validators, proposer=keys[0].address)).certificate
    few, doubled = good.precommits[:2], (good.precommits[0], *good.precommits[:2])
    stranger = certify([*keys[:2], keys[4]], make_block(validators, proposer=keys[0].address)).certificate
    good.check(NETWORK, validators)
    for forged in (replace(good, precommits=few), replace(good, precommits=doubled), stranger):
        refused(CertificateError, partial(forged.check, NETWORK, validators), "no quorum, no certificate")


def a_certificate_is_signed() -> None:
    """Another's signature in the third place; another round; another header."""
    keys = make_keys(4)
    validators = make_set(keys)
    good = certify(keys, make_block(validators, proposer=keys[0].address)).certificate
    third = Precommit(validator=good.precommits[2].validator, signature=good.precommits[3].signature)
    forgeries = (
        replace(good, precommits=(*good.precommits[:2], third)),
        replace(good, round=Round(1)),
        replace(good, header=replace(good.header, log_size=5)),
    )
    for forged in forgeries:
        refused(SignatureError, partial(forged.check, NETWORK, validators), "unsigned, and accepted")


def a_vote_is_of_this_epoch() -> None:
    """A validator of this epoch signs a vote of the next one."""
    keys = make_keys(4)
    vote = sign_vote(keys[1], "prevote", None, epoch=1)
    refused(VoteError, lambda: check_vote(NETWORK, make_set(keys), vote, _unknown), "a vote of another epoch counts")


def a_vote_is_signed() -> None:
    """By who it names, for what it says."""
    keys = make_keys(4)
    validators = make_set(keys)
    for kind in ("prevote", "precommit"):
        vote = sign_vote(keys[1], kind, Digest(bytes([1] * 32)))
        check_vote(NETWORK, validators, vote, _unknown)
        for forged in (
            replace(vote, round=Round(1)),
            replace(vote, value=None),
            replace(vote, validator=keys[2].address),
        ):
            _refuse_vote(validators, forged)


def a_signature_is_for_one_network() -> None:
    """The same key validates in two networks."""
    keys = make_keys(4)
    for kind in ("prevote", "precommit"):
        for value in (None, Digest(bytes([1] * 32))):
            _refuse_vote(make_set(keys), sign_vote(keys[1], kind, value, network=NetworkId(bytes([9] * 32))))


def a_vote_keeps_the_lock_it_states() -> None:
    """Locked on A by its own words, and for B."""
    keys = make_keys(4)
    vote = sign_vote(keys[1], "prevote", Digest(bytes([1] * 32)), round_=2, lock=(1, Digest(bytes([2] * 32))))
    refused(
        VoteError, lambda: check_vote(NETWORK, make_set(keys), vote, _unknown), "a vote against its own lock counts"
    )


def a_polka_is_by_distinct_validators() -> None:
    """One validator's prevote, three times."""
    keys = make_keys(4)
    vote = sign_vote(keys[1], "prevote", Digest(bytes([1] * 32)))
    refused(
        VoteError,
        lambda: check_votes(NETWORK, make_set(keys), (vote, vote, vote), "prevote", _unknown),
        "one validator makes a polka",
    )


def a_proposal_is_the_proposers() -> None:
    """Another validator proposes."""
    keys = make_keys(4)
    validators = make_set(keys)
    proposal = sign_proposal(keys[2], make_block(validators, proposer=keys[2].address))
    refused(VoteError, lambda: check_proposal(NETWORK, validators, proposal, _unknown), "anybody may propose")


def a_block_stands_on_its_parent() -> None:
    """On another one."""
    keys = make_keys(4)
    validators = make_set(keys)
    block = make_block(validators, proposer=keys[1].address, parent=bytes(32))
    refused(
        BlockError, lambda: check_link(validators, block, block.header.height, Digest(NETWORK)), "a fork is accepted"
    )


def a_height_is_over_by_certificate_only() -> None:
    """A forged certificate of a later height would make a validator give up its own, and fetch."""
    keys = make_keys(4)
    validators = make_set(keys)
    horizon = Horizon(validators, keys[0].address)
    intake = Intake(
        network=NETWORK,
        validators=validators,
        application=cast("Application", None),
        clock=cast("Clock", None),
        horizon=horizon,
    )
    forged = certify(keys[:2], make_block(validators, 5, proposer=keys[0].address)).certificate
    state = State(validators=validators, me=keys[0].address, height=Height(1))

    async def admit() -> None:
        body = HeightCertificate(certificate=forged)
        await intake.admit(state, Digest(NETWORK), keys[1].address, body, checked=False)

    refused(CertificateError, lambda: trio.run(admit), "a forged certificate of a height is believed")
    holds(horizon.decided == 0, "a forged certificate of a height is remembered")


def a_fetched_block_is_certified() -> None:
    """Whoever serves blocks to one that fell behind may serve its own."""
    keys = make_keys(4)
    validators = make_set(keys)
    genesis = Tip(Height(0), Digest(NETWORK), None)
    block = make_block(validators, proposer=keys[0].address)
    check_decided(NETWORK, validators, genesis, certify(keys[:3], block))
    forged = certify(keys[:2], block)
    refused(CertificateError, lambda: check_decided(NETWORK, validators, genesis, forged), "a block without a quorum")
    other = replace(certify(keys[:3], block), block=make_block(validators, proposer=keys[0].address, salt=1))
    refused(CertificateError, lambda: check_decided(NETWORK, validators, genesis, other), "another block's certificate")


def _refuse_vote(validators: ValidatorSet, vote: Vote) -> None:
    refused(SignatureError, lambda: check_vote(NETWORK, validators, vote, _unknown), f"a forged {vote.kind} counts")


def _unknown(_vote: Vote) -> bool:
    return False
