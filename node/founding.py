"""Founding a network: the genesis of a solo network and of a devnet. Blocking (key and genesis files)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nsllm.consensus.registry import Member, Role
from nsllm.governance.genesis import Genesis, Placement
from nsllm.governance.policy import Policy
from nsllm.ids import TimeMs
from nsllm.node.identity import Identity

ALL_ROLES: Final[tuple[Role, ...]] = ("contributor", "data", "validator")


def founder(identity: Identity, roles: Sequence[Role] = ALL_ROLES) -> Member:
    """The registry entry of a founding member."""
    return Member(address=identity.address, peer_id=identity.peer_id, roles=tuple(sorted(set(roles))))


def found(
    name: str, members: Sequence[Member], policy: Policy, created_ms: TimeMs, *, local: bool, chain_id: int = 7777
) -> Genesis:
    """Genesis with these first members; the same arguments give the same network id, whatever their order.

    Args:
        name: network name, lower case.
        members: first members; those with the validator role are the validator set.
        policy: thresholds, weights and rubric in force from the start.
        created_ms: wall time that goes into the genesis.
        local: one machine or one trusted network: private address ranges may be dialled.
        chain_id: EVM chain id of the embedded chain.

    Raises:
        ValueError: no validator among them, or a member stands twice.
    """
    ordered = tuple(sorted(members, key=lambda member: member.address))
    replication = min(2, len(ordered))
    return Genesis(
        name=name,
        created_ms=created_ms,
        members=ordered,
        policy=policy,
        placement=Placement(replication=replication),
        chain_id=chain_id,
        local=local,
    )
