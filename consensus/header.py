"""The block header: the one thing that precommits sign, as EIP-712 typed data, so that a contract reads it too.

The EIP-712 domain is `EIP712Domain(string name,string version,bytes32 salt)` with name "NS-LLM", version "1" and the
network id as salt; there is no chain id, so that one certificate is accepted on several chains.

    Header(uint64 epoch,uint64 height,uint64 timeMs,bytes32 parent,address proposer,bytes32 bodyDigest,
           bytes32 scoresRoot,uint64 logSize,bytes32 logRoot,bytes32 stateRoot,bytes32 validatorsHash,
           bytes32 policyDigest,bytes32 registryHash,bytes32 nextEpoch,bytes32 snapshotHash)
    Precommit(uint64 epoch,uint64 height,uint32 round,Header header)Header(...)

A block's id is `hashStruct(header)`; it has no round, so a value proposed again in a later round keeps its id. The
precommit carries the round, because precommits of different rounds must never count together.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Final

from nsllm.canonical import Value
from nsllm.consensus.typed_data import address_word, type_hash, word
from nsllm.crypto import keccak256
from nsllm.ids import (
    ZERO_DIGEST,
    AddressField,
    CountField,
    Digest,
    DigestField,
    EpochField,
    HeightField,
    NetworkId,
    Round,
    TimeMsField,
)

HEADER_TYPE: Final = (
    "Header(uint64 epoch,uint64 height,uint64 timeMs,bytes32 parent,address proposer,bytes32 bodyDigest,"
    "bytes32 scoresRoot,uint64 logSize,bytes32 logRoot,bytes32 stateRoot,bytes32 validatorsHash,bytes32 policyDigest,"
    "bytes32 registryHash,bytes32 nextEpoch,bytes32 snapshotHash)"
)
PRECOMMIT_TYPE: Final = "Precommit(uint64 epoch,uint64 height,uint32 round,Header header)" + HEADER_TYPE
DOMAIN_TYPE: Final = "EIP712Domain(string name,string version,bytes32 salt)"


class Header(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """What a quorum signs. Heights start at 1; the parent of height 1 is the network id."""

    epoch: EpochField
    height: HeightField
    time_ms: TimeMsField
    parent: DigestField
    """Id of the header one height below."""
    proposer: AddressField
    """Who built the block (in the round where it was first proposed)."""
    body_digest: DigestField
    scores_root: DigestField
    """RFC 6962 root over this block's score leaves, in body order; the empty tree's root if there are none."""
    log_size: CountField
    log_root: DigestField
    """Size and RFC 6962 root of the network log after this block."""
    state_root: DigestField
    """EVM state root after the block one height below (its own transactions run once it is decided)."""
    validators_hash: DigestField
    """Of the epoch's validator set."""
    policy_digest: DigestField
    """Of the epoch's policy."""
    registry_hash: DigestField
    """Digest of the member registry after this block."""
    next_epoch: DigestField = ZERO_DIGEST
    """Digest of the `EpochChange` that takes effect at the next height; zeros within an epoch."""
    snapshot_hash: DigestField = ZERO_DIGEST
    """Digest of the newest snapshot of the state below this height; zeros before the first."""

    @property
    def ends_epoch(self) -> bool:
        """Whether the next height belongs to another epoch."""
        return self.next_epoch != ZERO_DIGEST

    def id(self) -> Digest:
        """EIP-712 `hashStruct(header)`."""
        return self._id

    @cached_property
    def _id(self) -> Digest:
        return keccak256(
            type_hash(HEADER_TYPE)
            + word(self.epoch)
            + word(self.height)
            + word(self.time_ms)
            + self.parent
            + address_word(self.proposer)
            + self.body_digest
            + self.scores_root
            + word(self.log_size)
            + self.log_root
            + self.state_root
            + self.validators_hash
            + self.policy_digest
            + self.registry_hash
            + self.next_epoch
            + self.snapshot_hash
        )


@lru_cache(maxsize=64)
def domain_separator(network: NetworkId) -> Digest:
    """EIP-712 `hashStruct(eip712Domain)` of the network."""
    return keccak256(type_hash(DOMAIN_TYPE) + keccak256(b"NS-LLM") + keccak256(b"1") + network)


@lru_cache(maxsize=64)
def precommit_digest(network: NetworkId, epoch: int, height: int, round_: Round, header_id: Digest) -> Digest:
    """What a validator signs to precommit a header: EIP-712 digest of `Precommit`."""
    struct = keccak256(
        type_hash(PRECOMMIT_TYPE) + word(epoch) + word(height) + word(round_) + header_id,
    )
    return keccak256(b"\x19\x01" + domain_separator(network) + struct)
