"""The genesis: the trust root of a network. Its digest is the network id."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.registry import Member, MemberRegistry, RegistryState
from nsllm.errors import EncodingError
from nsllm.files import read_bounded, write_atomic
from nsllm.governance.errors import GenesisError
from nsllm.governance.policy import Policy
from nsllm.ids import NameField, NetworkId, TimeMsField

MAX_GENESIS_BYTES: Final = 1024 * 1024


class Placement(Value, frozen=True, kw_only=True):
    """The public rule that cuts key space and embedding space into shards."""

    shards: Annotated[int, Meta(ge=1, le=65536)] = 64
    replication: Annotated[int, Meta(ge=1, le=32)] = 2
    """Members with the data role that hold each shard."""


class Genesis(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """First members and validators, policy, chain and placement parameters."""

    name: NameField
    created_ms: TimeMsField
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=4096)]
    """Ascending by address; of these at most 256 validate."""
    policy: Policy
    placement: Placement
    chain_id: Annotated[int, Meta(ge=1, le=2**53)] = 7777
    """EVM chain id of the embedded chain."""
    snapshot_heights: Annotated[int, Meta(ge=1, le=1_000_000)] = 500
    """A snapshot of the state is taken after every so many blocks; the headers that follow certify it."""
    local: bool = False
    """A network on one machine or one trusted LAN: private address ranges may be dialled."""

    def __post_init__(self) -> None:
        addresses = [member.address for member in self.members]
        if addresses != sorted(set(addresses)):
            raise ValueError("members stand once each, ascending by address")
        if not any("validator" in member.roles for member in self.members):
            raise ValueError("at least one member has the validator role")

    def network_id(self) -> NetworkId:
        """Digest of the canonical genesis; computed once, since a large one takes a millisecond."""
        return self._network_id

    def registry(self) -> MemberRegistry:
        """A fresh registry of the genesis members; what it begins with is shared with the others."""
        return MemberRegistry(self.network_id(), self._state)

    @cached_property
    def _network_id(self) -> NetworkId:
        return NetworkId(canonical.digest("genesis", b"", self))

    @cached_property
    def _state(self) -> RegistryState:
        return RegistryState(members=self.members)


def load_genesis(path: Path) -> Genesis:
    """Genesis from its JSON file.

    Raises:
        GenesisError: missing, too long, or not a genesis; names the field.
    """
    try:
        text = read_bounded(path, limit_bytes=MAX_GENESIS_BYTES).decode()
        return canonical.from_json(text, Genesis, limit_bytes=MAX_GENESIS_BYTES)
    except (EncodingError, UnicodeDecodeError) as error:
        raise GenesisError(f"{path}: {error}", hint="use the genesis.json that the network's members share") from None


def save_genesis(path: Path, genesis: Genesis) -> None:
    """Write the genesis as canonical JSON."""
    write_atomic(path, canonical.to_json(genesis).encode(), mode=0o644)
