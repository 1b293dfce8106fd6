"""Signed things with known keys: what directed scenarios and tests of agreement are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nsllm import merkle
from nsllm.consensus.block import Block, Body, DecidedBlock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.registry import Member
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Choice, Proposal, ProposalBody, Vote, VoteBody, VoteKind
from nsllm.crypto import MemberKey
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import Genesis, Placement
from nsllm.ids import ZERO_DIGEST, Address, Digest, Epoch, Height, NetworkId, PeerId, Round, TimeMs

NETWORK: Final = NetworkId(bytes(range(32)))
START_MS: Final = TimeMs(1_700_000_000_000)


def make_keys(count: int) -> list[MemberKey]:
    """Fixed keys, ascending by address, so that key i is validator i."""
    return sorted((MemberKey(bytes([7] * 31 + [i + 1])) for i in range(count)), key=lambda key: key.address)


def make_set(keys: Sequence[MemberKey], epoch: int = 0) -> ValidatorSet:
    """The validators that hold `keys`."""
    return ValidatorSet(epoch=Epoch(epoch), members=tuple(key.address for key in keys))


def make_block(
    validators: ValidatorSet,
    height: int = 1,
    *,
    proposer: Address,
    parent: bytes | None = None,
    salt: int = 0,
    time_ms: int = START_MS,
    entries: Sequence[bytes] = (),
) -> Block:
    """A block that the application knows nothing of; `salt` tells blocks apart."""
    body = Body(entries=tuple(entries))
    header = Header(
        epoch=validators.epoch,
        height=Height(height),
        time_ms=TimeMs(time_ms),
        parent=Digest(NETWORK if parent is None else parent),
        proposer=proposer,
        body_digest=body.digest(NETWORK),
        scores_root=merkle.EMPTY_ROOT,
        log_size=salt,
        log_root=ZERO_DIGEST,
        state_root=ZERO_DIGEST,
        validators_hash=validators.digest(),
        policy_digest=ZERO_DIGEST,
        registry_hash=ZERO_DIGEST,
    )
    return Block(header=header, body=body)


def make_genesis(keys: Sequence[MemberKey]) -> Genesis:
    """Of a network of these validators."""
    members = tuple(
        Member(address=key.address, peer_id=PeerId(f"peer-{number}"), roles=("validator",))
        for number, key in enumerate(keys)
    )
    policy = default_policy(ZERO_DIGEST, ZERO_DIGEST)
    return Genesis(name="made", created_ms=START_MS, members=members, policy=policy, placement=Placement())


def sign_vote(
    key: MemberKey,
    kind: VoteKind,
    value: Digest | None,
    *,
    round_: int = 0,
    height: int = 1,
    epoch: int = 0,
    network: NetworkId = NETWORK,
    lock: Choice | tuple[int, Digest] | None = None,
    valid_round: int | None = None,
) -> Vote:
    """A vote as `key` signs it, whatever it signed before."""
    held = Choice(round=Round(lock[0]), value=lock[1]) if isinstance(lock, tuple) else lock
    stated = None if valid_round is None else Round(valid_round)
    body = VoteBody(
        kind=kind,
        epoch=Epoch(epoch),
        height=Height(height),
        round=Round(round_),
        value=value,
        validator=key.address,
        lock=held,
        valid_round=stated,
    )
    return body.signed(key.sign(body.digest(network)))


def sign_proposal(
    key: MemberKey,
    block: Block,
    *,
    round_: int = 0,
    valid_round: int | None = None,
    polka: Sequence[Vote] = (),
    height: int | None = None,
    network: NetworkId = NETWORK,
) -> Proposal:
    """A proposal as `key` signs it, whatever it signed before."""
    at = Height(block.header.height if height is None else height)
    claimed = None if valid_round is None else Round(valid_round)
    body = ProposalBody(
        epoch=Epoch(0),
        height=at,
        round=Round(round_),
        value=block.header.id(),
        valid_round=claimed,
        proposer=key.address,
    )
    return body.signed(block, tuple(polka), key.sign(body.digest(network)))


def certify(keys: Sequence[MemberKey], block: Block, *, round_: int = 0, network: NetworkId = NETWORK) -> DecidedBlock:
    """The block with everybody's precommits of one round."""
    header = block.header
    digest = precommit_digest(network, header.epoch, header.height, Round(round_), header.id())
    precommits = tuple(
        Precommit(validator=key.address, signature=key.sign(digest))
        for key in sorted(keys, key=lambda key: key.address)
    )
    return DecidedBlock(block=block, certificate=Certificate(header=header, round=Round(round_), precommits=precommits))
