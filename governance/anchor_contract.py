"""What both sides know of the contract `contracts/NetworkAnchor.sol`: its address, calls, storage slots and code.

The ABI is encoded here by hand, because there are two fixed shapes: the constructor and `anchor`.

Source: Solidity ABI specification; Solidity "Layout of State Variables in Storage".
"""

from __future__ import annotations

from importlib import resources
from typing import Final

import msgspec

from nsllm import canonical
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance import rlp
from nsllm.ids import Address, Digest, NetworkId

ANCHOR_SELECTOR: Final = keccak256(
    b"anchor((uint64,uint64,uint64,bytes32,address,bytes32,bytes32,uint64,bytes32,bytes32,bytes32,bytes32),uint32,bytes)"
)[:4]
CODE_HASH: Final = Digest(bytes.fromhex("af4d24dd8877bb6cda7c2b238d37fb2a0abdbb4e8792920583cce1351e5e794a"))
"""keccak-256 of the runtime code, the same for every network: the contract has no immutables."""

# Storage layout, as the head of the Solidity source documents it.
HEAD_SLOT: Final = 0
"""logSize | height << 64 | timeMs << 128."""
HEAD_LOG_ROOT_SLOT: Final = 1
ANCHORS_SLOT: Final = 3
"""mapping(uint64 logSize => keccak256(logRoot ‖ headerId))."""
NETWORK_ID_SLOT: Final = 5
VALIDATORS_HASH_SLOT: Final = 6


class _Artifact(msgspec.Struct):
    bytecode: str


def deployer_key(network: NetworkId) -> MemberKey:
    """The key that deploys the contract as its first transaction. Public knowledge: it guards nothing."""
    return MemberKey(canonical.digest("anchor-deployer", network, b""))


def contract_address(network: NetworkId) -> Address:
    """Where the network's contract stands on its embedded chain: CREATE by the deployer at nonce 0."""
    return Address(keccak256(rlp.encode([deployer_key(network).address, 0]))[12:])


def deployment_code(network: NetworkId, validators: ValidatorSet) -> bytes:
    """Creation code and constructor arguments: what the deploying transaction carries."""
    artifact = resources.files("nsllm.governance").joinpath("contracts", "NetworkAnchor.json").read_bytes()
    code = bytes.fromhex(msgspec.json.decode(artifact, type=_Artifact).bytecode[2:])
    return b"".join(
        (
            code,
            network,
            word(validators.epoch),
            word(5 * 32),  # the array stands after the five words of the head
            word(validators.quorum),
            validators.digest(),
            word(validators.size),
            *(bytes(12) + member for member in validators.members),
        )
    )


def anchor_call(certificate: Certificate) -> bytes:
    """Calldata of `anchor` for a certificate, all of its signatures included."""
    header = certificate.header
    signatures = b"".join(vote.signature for vote in certificate.precommits)
    return b"".join(
        (
            ANCHOR_SELECTOR,
            word(header.epoch),
            word(header.height),
            word(header.time_ms),
            header.parent,
            bytes(12) + header.proposer,
            header.body_digest,
            header.scores_root,
            word(header.log_size),
            header.log_root,
            header.state_root,
            header.validators_hash,
            header.policy_digest,
            word(certificate.round),
            word(14 * 32),  # the signatures stand after header, round and this offset
            word(len(signatures)),
            signatures + bytes(-len(signatures) % 32),
        )
    )


def anchor_call_limit_bytes(validators: ValidatorSet) -> int:
    """Length of the calldata that carries every validator's signature."""
    return 4 + 15 * 32 + (65 * validators.size + 31) // 32 * 32


def anchor_gas(validators: ValidatorSet) -> int:
    """Gas limit of an anchor. Measured: 127,000 for the first and 7,600 a signature, so half again to spare."""
    return 250_000 + 15_000 * validators.size


def deployment_gas(validators: ValidatorSet) -> int:
    """Gas limit of the deployment: code, and one new storage slot a validator."""
    return 2_000_000 + 30_000 * validators.size


def anchor_slot(log_size: int) -> bytes:
    """Storage slot of `anchors[log_size]`."""
    return keccak256(word(log_size) + word(ANCHORS_SLOT))


def anchor_commitment(log_root: Digest, header_id: Digest) -> Digest:
    """What the contract stores under a log size."""
    return keccak256(log_root + header_id)


def word(number: int) -> bytes:
    """A number as an EVM word: 32 bytes, big-endian."""
    return number.to_bytes(32, "big")
