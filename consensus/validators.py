"""The validator set of an epoch, its quorum and its proposers."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Final

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.typed_data import addresses_word, type_hash, word
from nsllm.crypto import keccak256
from nsllm.ids import Address, AddressField, Digest, EpochField

SET_TYPE: Final = "ValidatorSet(uint64 epoch,address[] members)"


class ValidatorSet(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """Equal-weight validators of one epoch, ascending by address."""

    epoch: EpochField
    members: Annotated[tuple[AddressField, ...], Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        if list(self.members) != sorted(set(self.members)):
            raise ValueError("validators stand once each, in ascending order")

    @property
    def size(self) -> int:
        """Number of validators, n."""
        return len(self.members)

    @cached_property
    def faults(self) -> int:
        """Byzantine validators tolerated, f = floor((n-1)/3)."""
        return (self.size - 1) // 3

    @cached_property
    def quorum(self) -> int:
        """floor((n+f)/2)+1: any two quorums share an honest validator for every n (2f+1 does not, for 19 of 4..32)."""
        return (self.size + self.faults) // 2 + 1

    @property
    def enough_observations(self) -> int:
        """n-f: how many validators' observations a score needs."""
        return self.size - self.faults

    def proposer(self, height: int, round_: int) -> Address:
        """Rotation: validator number (height + round) mod n."""
        return self.members[(height + round_) % self.size]

    def digest(self) -> Digest:
        """The header's `validators_hash`: EIP-712 `hashStruct`, so that the contract computes it too."""
        return self._digest

    @cached_property
    def _digest(self) -> Digest:
        return keccak256(type_hash(SET_TYPE) + word(self.epoch) + addresses_word(self.members))

    @cached_property
    def _known(self) -> frozenset[Address]:
        return frozenset(self.members)

    def __contains__(self, address: object) -> bool:
        return address in self._known
