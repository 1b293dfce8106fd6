"""Members of the network: who may publish, validate and hold. The genesis lists the first; members admit others.

The registry is certified state: every header carries its digest after the block. Its changes are values (`with_member`,
`without`, …), so that proposing and judging a block never touch what is in force. Which records validators retracted
stands in it too, so that every header says it and whoever takes over certified state has it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Final, Literal

from msgspec import Meta
from msgspec.structs import replace

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.attendance import Attendance
from nsllm.consensus.errors import ConsensusError
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.ids import (
    Address,
    AddressField,
    Digest,
    DigestField,
    Epoch,
    Height,
    HeightField,
    NetworkId,
    PeerId,
    PeerIdField,
    SignatureField,
    hex0x,
)

Role = Literal["contributor", "data", "validator"]
DEFAULT_SLOTS: Final = 600
MAX_MEMBERS: Final = 65_536
MAX_RETRACTED: Final = 16_384
"""Records that a network may retract: about 1 MB of certified state."""


class Member(Value, frozen=True, kw_only=True):
    """One entry of the registry."""

    address: AddressField
    peer_id: PeerIdField
    roles: Annotated[tuple[Role, ...], Meta(min_length=1, max_length=3)]
    """Ascending, each once."""
    slots: Annotated[int, Meta(ge=1, le=1_000_000)] = DEFAULT_SLOTS
    """Records that validators score for this member in one minute."""
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    """At 0 the member is suspended: it validates nothing and admits nobody. Above, all count alike: one vote each."""


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


class Retraction(Value, frozen=True, kw_only=True):
    """A record that validators took back: nobody serves it from this height on."""

    record: DigestField
    height: HeightField
    """Of the block that holds the motion."""


_Addresses = Annotated[tuple[AddressField, ...], Meta(max_length=MAX_MEMBERS)]


class RegistryState(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """The registry after a block. Everything ascends by address."""

    members: Annotated[tuple[Member, ...], Meta(max_length=MAX_MEMBERS)]
    absent: _Addresses = ()
    """Validators that were away for long: out of the set until a motion admits them again."""
    revoked: _Addresses = ()
    """Former members, whom no single member's admission brings back."""
    retracted: Annotated[tuple[Retraction, ...], Meta(max_length=MAX_RETRACTED)] = ()
    """Records that validators took back, ascending by record."""
    attendance: Attendance = Attendance()
    """Who showed itself lately."""

    @classmethod
    def of(cls, members: Iterable[Member]) -> RegistryState:
        """These members and nobody away or revoked, as the genesis has them."""
        return cls(members=tuple(sorted(members, key=lambda member: member.address)))

    def digest(self, network: NetworkId) -> Digest:
        """The header's `registry_hash`; computed once, since most blocks leave the registry as it is."""
        if network not in self._digests:
            self._digests[network] = canonical.digest("registry", network, self)
        return self._digests[network]

    def get(self, address: Address) -> Member | None:
        """The member with this address."""
        return self._by_address.get(address)

    def validators(self, epoch: Epoch) -> ValidatorSet | None:
        """Who validates in an epoch that begins with this registry; None if nobody would."""
        return ValidatorSet(epoch=epoch, members=self._eligible) if self._eligible else None

    def count_validators(self) -> int:
        """How many members may validate."""
        return len(self._eligible)

    def count_appointed(self) -> int:
        """How many members may validate or could if they were not absent."""
        return sum(_is_appointed(member) for member in self.members)

    def is_eligible(self, address: Address) -> bool:
        """Whether the member may validate: by its role, with weight, and present."""
        member = self.get(address)
        return member is not None and _is_appointed(member) and address not in self.absent

    def with_member(self, member: Member) -> RegistryState:
        """With this entry, in place of an earlier one of the same address; a revoked address is one no longer."""
        others = (each for each in self.members if each.address != member.address)
        return replace(
            self,
            members=tuple(sorted((*others, member), key=lambda each: each.address)),
            absent=_minus(self.absent, member.address),
            revoked=_minus(self.revoked, member.address),
        )

    def with_weight(self, address: Address, weight: int) -> RegistryState:
        """With another weight of a member; itself if there is no such member."""
        member = self.get(address)
        if member is None:
            return self
        changed = replace(member, weight=weight)
        return replace(self, members=tuple(changed if m.address == address else m for m in self.members))

    def without(self, address: Address) -> RegistryState:
        """With a member's entry revoked."""
        return replace(
            self,
            members=tuple(member for member in self.members if member.address != address),
            absent=_minus(self.absent, address),
            revoked=tuple(sorted({*self.revoked, address})),
        )

    def with_absent(self, addresses: Iterable[Address]) -> RegistryState:
        """With these validators away."""
        return replace(self, absent=tuple(sorted({*self.absent, *addresses})))

    def with_attendance(self, attendance: Attendance) -> RegistryState:
        """With this attendance; itself if it is no other."""
        return self if attendance == self.attendance else replace(self, attendance=attendance)

    def retracted_at(self, record: Digest) -> Height | None:
        """Height of the block that retracted a record; None if none did."""
        at = bisect_left(self.retracted, record, key=lambda each: each.record)
        found = self.retracted[at : at + 1]
        return found[0].height if found and found[0].record == record else None

    def with_retracted(self, record: Digest, height: Height) -> RegistryState:
        """With a record retracted; one that is already stays as it was."""
        if self.retracted_at(record) is not None:
            return self
        at = bisect_left(self.retracted, record, key=lambda each: each.record)
        fresh = Retraction(record=record, height=height)
        return replace(self, retracted=(*self.retracted[:at], fresh, *self.retracted[at:]))

    @cached_property
    def holding(self) -> tuple[Address, ...]:
        """Members with the data role: shards are placed over them."""
        return tuple(member.address for member in self.members if "data" in member.roles)

    @cached_property
    def _eligible(self) -> tuple[Address, ...]:
        """Found once: most blocks leave the registry as it is, and every block asks."""
        return tuple(member.address for member in self.members if self.is_eligible(member.address))

    @cached_property
    def _digests(self) -> dict[NetworkId, Digest]:
        return {}

    def by_peer(self, peer: PeerId) -> Member | None:
        """The member with this libp2p identity; of two that claim one, the one with the lower address counts."""
        return self._by_peer.get(peer)

    @cached_property
    def _by_peer(self) -> dict[PeerId, Member]:
        return {member.peer_id: member for member in reversed(self.members)}

    @cached_property
    def _by_address(self) -> dict[Address, Member]:
        return {member.address: member for member in self.members}


class MemberRegistry:
    """Members by address: the genesis members, and those whom a genesis member's signature admitted."""

    def __init__(self, network: NetworkId, genesis: RegistryState) -> None:
        self._network = network
        self._genesis = genesis
        self.state = genesis
        """What is in force; whoever owns the registry replaces it."""
        self._followed = self.state

    def admit(self, admission: Admission) -> bool:
        """Take an admission; True if it is new.

        Raises:
            ConsensusError: see `check`.
            SignatureError: not that member's signature.
        """
        self.check(admission)
        if self.state.get(admission.member.address) is not None:
            return False
        self.state = self.state.with_member(admission.member)
        return True

    def check(self, admission: Admission) -> None:
        """Pass silently if the admission holds under the present state.

        Raises:
            ConsensusError: not by a genesis member in good standing, of somebody revoked, or it claims the validator
                role or another weight than the usual one.
            SignatureError: not that member's signature.
        """
        member, by = admission.member, self.state.get(admission.by)
        if self._genesis.get(admission.by) is None:
            raise ConsensusError(f"admission by {hex0x(admission.by)}, who is not a genesis member")
        if by is None or by.weight < 1:
            raise ConsensusError(f"admission by {hex0x(admission.by)}, who is suspended or revoked")
        if "validator" in member.roles or member.weight != 1:
            raise ConsensusError(
                "an admission cannot grant the validator role or a weight",
                hint="propose it to the validators: `nsllm governance propose`",
            )
        if member.address in self.state.revoked:
            raise ConsensusError(f"admission of {hex0x(member.address)}, whose membership was revoked")
        crypto.verify(Admission.digest(self._network, member), admission.signature, admission.by)

    def follow(self, certified: RegistryState) -> None:
        """Take over a certified registry, keeping those whose admission is still on its way into a block."""
        if certified is self._followed:
            return
        self._followed, before = certified, self.state
        self.state = certified
        for member in before.members:
            if certified.get(member.address) is None and member.address not in certified.revoked:
                self.state = self.state.with_member(member)

    def get(self, address: Address) -> Member | None:
        """The member with this address."""
        return self.state.get(address)

    def by_peer(self, peer: PeerId) -> Member | None:
        """The member whose card names this libp2p identity."""
        return self.state.by_peer(peer)

    def members(self) -> tuple[Member, ...]:
        """All members, ascending by address."""
        return self.state.members

    def with_role(self, role: Role) -> tuple[Member, ...]:
        """Members that have `role`, ascending by address."""
        return tuple(member for member in self.members() if role in member.roles)

    def validators(self) -> ValidatorSet:
        """The validator set of epoch 0, for a registry as the genesis lists it."""
        chosen = self.state.validators(Epoch(0))
        if chosen is None:
            raise ConsensusError("no member validates", hint="a genesis lists at least one validator")
        return chosen


def _is_appointed(member: Member) -> bool:
    return "validator" in member.roles and member.weight >= 1


def _minus(addresses: tuple[Address, ...], gone: Address) -> tuple[Address, ...]:
    return tuple(address for address in addresses if address != gone)
