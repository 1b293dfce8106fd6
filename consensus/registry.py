"""Members of the network: who may publish, validate and hold. The genesis lists the first; members admit others."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.errors import ConsensusError
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.ids import Address, AddressField, Digest, Epoch, NetworkId, PeerId, PeerIdField, SignatureField, hex0x

Role = Literal["contributor", "data", "validator"]
DEFAULT_SLOTS: Final = 600


class Member(Value, frozen=True, kw_only=True):
    """One entry of the registry."""

    address: AddressField
    peer_id: PeerIdField
    roles: Annotated[tuple[Role, ...], Meta(min_length=1, max_length=3)]
    """Ascending, each once."""
    slots: Annotated[int, Meta(ge=1, le=1_000_000)] = DEFAULT_SLOTS
    """Records that validators score for this member in one minute."""


class Admission(Value, frozen=True, kw_only=True):
    """A genesis member's signed word that `member` belongs to the network."""

    member: Member
    by: AddressField
    signature: SignatureField

    @staticmethod
    def digest(network: NetworkId, member: Member) -> Digest:
        """What the admitting member signs."""
        return canonical.digest("admission", network, member)


def admit(key: MemberKey, network: NetworkId, member: Member) -> Admission:
    """Admission of `member`, signed by a genesis member's key."""
    return Admission(member=member, by=key.address, signature=key.sign(Admission.digest(network, member)))


class MemberRegistry:
    """Members by address: the genesis members, and those whom a genesis member's signature admitted."""

    def __init__(self, network: NetworkId, genesis_members: Iterable[Member]) -> None:
        self._network = network
        self._genesis = {member.address: member for member in genesis_members}
        self._members = dict(self._genesis)
        self._ordered = tuple(self._genesis[address] for address in sorted(self._genesis))
        self._by_peer = {member.peer_id: member for member in reversed(self._ordered)}
        """Of two members that claim one libp2p identity the one with the lower address counts."""

    def admit(self, admission: Admission) -> bool:
        """Take an admission; True if it is new.

        Raises:
            ConsensusError: not by a genesis member, or it claims the validator role.
            SignatureError: not that member's signature.
        """
        if admission.by not in self._genesis:
            raise ConsensusError(f"admission by {hex0x(admission.by)}, who is not a genesis member")
        if "validator" in admission.member.roles:
            raise ConsensusError("an admission cannot grant the validator role", hint="the set is fixed at genesis")
        crypto.verify(Admission.digest(self._network, admission.member), admission.signature, admission.by)
        if admission.member.address in self._members:
            return False
        self._add(admission.member)
        return True

    def get(self, address: Address) -> Member | None:
        """The member with this address."""
        return self._members.get(address)

    def by_peer(self, peer: PeerId) -> Member | None:
        """The member whose card names this libp2p identity."""
        return self._by_peer.get(peer)

    def members(self) -> tuple[Member, ...]:
        """All members, ascending by address."""
        return self._ordered

    def with_role(self, role: Role) -> tuple[Member, ...]:
        """Members that have `role`, ascending by address."""
        return tuple(member for member in self.members() if role in member.roles)

    def validators(self) -> ValidatorSet:
        """The validator set of epoch 0: the genesis members with that role."""
        chosen = sorted(a for a, member in self._genesis.items() if "validator" in member.roles)
        return ValidatorSet(epoch=Epoch(0), members=tuple(chosen))

    def _add(self, member: Member) -> None:
        self._members[member.address] = member
        ordered = list(self._ordered)
        insort(ordered, member, key=lambda known: known.address)
        self._ordered = tuple(ordered)
        held = self._by_peer.get(member.peer_id)
        if held is None or member.address < held.address:
            self._by_peer[member.peer_id] = member
