"""Governance transactions: what is decided about members, policy and records, with the approvals that carry it. Pure.

A motion says what shall change and until when it may be decided. Validators approve it by signing its digest; with as
many approvals as the policy asks for it may stand in a block, once. What it changes there takes effect at the next
height: if validators or policy differ from then on, that block ends its epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, assert_never

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.registry import MAX_MEMBERS, MAX_RETRACTED, Member, RegistryState
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.governance.errors import MotionError
from nsllm.governance.policy import Policy
from nsllm.ids import (
    Address,
    AddressField,
    Digest,
    DigestField,
    Epoch,
    Height,
    NetworkId,
    SignatureField,
    TimeMs,
    TimeMsField,
    hex0x,
)

MAX_TERM_MS: Final = 30 * 24 * 3600 * 1000
"""A motion may be decided for thirty days at most; so long, decided ones are remembered."""
MAX_VALIDATORS: Final = 256
"""As `ValidatorSet` bounds them."""


class Admit(Value, frozen=True, kw_only=True, tag_field="kind", tag="admit"):
    """Somebody joins, or gets another entry: other roles, slots, or weight again after a suspension."""

    member: Member


class ChangePolicy(Value, frozen=True, kw_only=True, tag_field="kind", tag="policy"):
    """Another policy is in force."""

    policy: Policy


class Retract(Value, frozen=True, kw_only=True, tag_field="kind", tag="retract"):
    """A record is taken back: holders delete it, nobody serves it, and receipts written later say so."""

    record: DigestField


class Revoke(Value, frozen=True, kw_only=True, tag_field="kind", tag="revoke"):
    """A membership ends. Only another motion admits that address again."""

    address: AddressField


class Suspend(Value, frozen=True, kw_only=True, tag_field="kind", tag="suspend"):
    """A member's weight becomes 0: it stays a member, but neither validates nor admits."""

    address: AddressField


Action = Admit | ChangePolicy | Retract | Revoke | Suspend


class Motion(Value, frozen=True, kw_only=True):
    """What shall change. Two motions for the same thing differ by proposer or time."""

    action: Action
    proposer: AddressField
    """The validator that made it; the first to approve."""
    created_ms: TimeMsField
    expires_ms: TimeMsField
    """No block of this time or later may hold it."""

    def __post_init__(self) -> None:
        if not self.created_ms < self.expires_ms <= self.created_ms + MAX_TERM_MS:
            raise ValueError(f"a motion expires within {MAX_TERM_MS} ms of its making")

    def digest(self, network: NetworkId) -> Digest:
        """What approving validators sign."""
        return canonical.digest("motion", network, self)


class Approval(Value, frozen=True, kw_only=True):
    """A validator's signature under a motion."""

    validator: AddressField
    signature: SignatureField


class GovernanceTransaction(Value, frozen=True, kw_only=True):
    """A motion and the approvals that carry it."""

    motion: Motion
    approvals: Annotated[tuple[Approval, ...], Meta(min_length=1, max_length=MAX_VALIDATORS)]
    """Ascending by address, each validator once, every signature valid (also beyond what is needed)."""


def approve(key: MemberKey, network: NetworkId, motion: Motion) -> Approval:
    """An approval signed by `key`."""
    return Approval(validator=key.address, signature=key.sign(motion.digest(network)))


def check_approval(network: NetworkId, motion: Motion, approval: Approval, validators: ValidatorSet) -> None:
    """Pass silently if a validator of this epoch signed the motion.

    Raises:
        MotionError: not a validator.
        SignatureError: not its signature.
    """
    if approval.validator not in validators:
        raise MotionError(f"approval by {hex0x(approval.validator)}, who is no validator of epoch {validators.epoch}")
    crypto.verify(motion.digest(network), approval.signature, approval.validator)


def check_transaction(
    network: NetworkId, transaction: GovernanceTransaction, validators: ValidatorSet, policy: Policy, time_ms: TimeMs
) -> None:
    """Pass silently if enough validators approved, in time; `apply` says whether it can be done.

    Raises:
        MotionError: too few approvals, out of order or doubled, not a validator's, expired.
        SignatureError: a signature that is not the named validator's, wherever it stands.
    """
    motion, approvals = transaction.motion, transaction.approvals
    if time_ms >= motion.expires_ms:
        raise MotionError(f"the motion expired at {motion.expires_ms}, the block is of {time_ms}")
    if time_ms + MAX_TERM_MS < motion.expires_ms:
        raise MotionError(f"the motion expires at {motion.expires_ms}, more than {MAX_TERM_MS} ms after {time_ms}")
    signers = [approval.validator for approval in approvals]
    if signers != sorted(set(signers)):
        raise MotionError("approvals are not in ascending order of distinct validators")
    if motion.proposer not in signers:
        raise MotionError(f"the proposer {hex0x(motion.proposer)} did not approve its own motion")
    needed = policy.approvals_needed(validators)
    if len(approvals) < needed:
        raise MotionError(f"{len(approvals)} approvals, {needed} are needed")
    for approval in approvals:
        check_approval(network, motion, approval, validators)


def check_possible(action: Action, registry: RegistryState, policy: Policy) -> None:
    """Pass silently if the action can be done after the last block.

    Raises:
        MotionError: see `apply`.
    """
    apply(action, registry, policy, Height(0))  # whether it can be done depends on no height


def apply(action: Action, registry: RegistryState, policy: Policy, height: Height) -> tuple[RegistryState, Policy]:
    """Registry and policy after an action in the block at `height`.

    Raises:
        MotionError: it changes nothing, names nobody, or would leave the network without validators.
    """
    match action:
        case Admit(member=member):
            after = _admitted(member, registry)
        case ChangePolicy(policy=wanted):
            if wanted == policy:
                raise MotionError("the policy is in force already")
            return registry, wanted
        case Retract(record=record):
            return _retracted(record, registry, height), policy
        case Revoke(address=address):
            _present(registry, address)
            after = registry.without(address)
        case Suspend(address=address):
            if _present(registry, address).weight == 0:
                raise MotionError(f"{hex0x(address)} is suspended already")
            after = registry.with_weight(address, 0)
        case _:
            assert_never(action)
    if after.validators(Epoch(0)) is None:
        raise MotionError("nobody would validate any more", hint="admit another validator first")
    return after, policy


def about(action: Action) -> Address | Digest | None:
    """The member or the record that an action is about."""
    match action:
        case Admit(member=member):
            return member.address
        case Revoke(address=address) | Suspend(address=address):
            return address
        case Retract(record=record):
            return record
        case ChangePolicy():
            return None
        case _:
            assert_never(action)


def merge(first: Sequence[Approval], more: Sequence[Approval]) -> tuple[Approval, ...]:
    """Approvals of both, ascending, one a validator: the first that came."""
    found = {approval.validator: approval for approval in (*more, *first)}
    return tuple(found[validator] for validator in sorted(found))


def _admitted(member: Member, registry: RegistryState) -> RegistryState:
    if list(member.roles) != sorted(set(member.roles)):
        raise MotionError(f"roles {member.roles} are not in ascending order, each once")
    known, namesake = registry.get(member.address), registry.by_peer(member.peer_id)
    if known == member and member.address not in registry.absent:
        raise MotionError(f"{hex0x(member.address)} is a member already, with this very entry")
    if namesake is not None and namesake.address != member.address:
        raise MotionError(f"peer {member.peer_id} belongs to {hex0x(namesake.address)}")
    if known is None and len(registry.members) >= MAX_MEMBERS:
        raise MotionError(f"the registry holds {MAX_MEMBERS} members, the most there can be")
    after = registry.with_member(member)
    if after.count_validators() > MAX_VALIDATORS:
        raise MotionError(f"more than {MAX_VALIDATORS} members would validate")
    return after


def _retracted(record: Digest, registry: RegistryState, height: Height) -> RegistryState:
    before = registry.retracted_at(record)
    if before is not None:
        raise MotionError(f"record {hex0x(record)} was retracted at height {before}")
    if len(registry.retracted) >= MAX_RETRACTED:
        raise MotionError(f"{MAX_RETRACTED} records are retracted, the most there can be")
    return registry.with_retracted(record, height)


def _present(registry: RegistryState, address: Address) -> Member:
    member = registry.get(address)
    if member is None:
        raise MotionError(f"{hex0x(address)} is not a member")
    return member
