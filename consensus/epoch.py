"""Epochs: heights with one validator set and one policy, and what hands over from one to the next.

A block whose header has a `next_epoch` is the last of its epoch. The change that this digest names holds from the next
height on, so it is decided by the validators whom it replaces; nothing is ever pending besides.
"""

from __future__ import annotations

from nsllm.canonical import Value
from nsllm.consensus.typed_data import type_hash, word
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import keccak256
from nsllm.ids import Digest, DigestField

CHANGE_TYPE = "EpochChange(uint64 epoch,bytes32 validatorsHash,bytes32 policyDigest)"


class EpochChange(Value, frozen=True, kw_only=True):
    """What an epoch begins with."""

    validators: ValidatorSet
    """Of the epoch that begins; its number stands in it."""
    policy_digest: DigestField
    """Of the policy in force during it."""

    def digest(self) -> Digest:
        """The boundary header's `next_epoch`: EIP-712 `hashStruct`, so that the contract computes it too."""
        return keccak256(
            type_hash(CHANGE_TYPE) + word(self.validators.epoch) + self.validators.digest() + self.policy_digest
        )
