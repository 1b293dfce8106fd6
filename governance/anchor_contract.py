"""What both sides know of the contract `contracts/NetworkAnchor.sol`: its address, calls, storage slots and code.

The ABI is encoded here by hand, because there are three fixed shapes: the constructor, `anchor` and `handover`.

Source: Solidity ABI specification; Solidity "Layout of State Variables in Storage".
"""

from __future__ import annotations

from importlib import resources
from typing import Final

import msgspec

from nsllm import canonical
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.typed_data import address_word, word
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance import rlp
from nsllm.governance.light_client import EpochProof
from nsllm.ids import Address, Digest, NetworkId

_HEADER: Final = (
    b"(uint64,uint64,uint64,bytes32,address,bytes32,bytes32,uint64"
    b",bytes32,bytes32,bytes32,bytes32,bytes32,bytes32,bytes32)"
)
_HEADER_WORDS: Final = 15
ANCHOR_SELECTOR: Final = keccak256(b"anchor(" + _HEADER + b",uint32,bytes)")[:4]
HANDOVER_SELECTOR: Final = keccak256(b"handover(" + _HEADER + b",uint32,bytes,address[],bytes32)")[:4]
CODE_HASH: Final = Digest(bytes.fromhex("89e45af4e8dc070432fde5b118f8db158dbea2fc8a3d8a123367847399594cc0"))
"""keccak-256 of the runtime code, the same for every network: the contract has no immutables."""

# Storage layout, as the head of the Solidity source documents it.
HEAD_SLOT: Final = 0
"""logSize | height << 64 | timeMs << 128."""
HEAD_LOG_ROOT_SLOT: Final = 1
ANCHORS_SLOT: Final = 3
"""mapping(uint64 logSize => keccak256(logRoot ‖ headerId))."""
NETWORK_ID_SLOT: Final = 5
VALIDATORS_HASH_SLOT: Final = 6
EPOCH_SLOT: Final = 7
"""epoch | validatorCount << 64 | quorum << 80 | anchorCount << 96."""
STORED_ANCHORS: Final = 1024
"""An anchor stands in the contract's storage until so many newer ones do."""


class _Artifact(msgspec.Struct):
    bytecode: str


def deployer_key(network: NetworkId) -> MemberKey:
    """The key that deploys the contract and signs every call of it.

    Public knowledge, it guards nothing: certificates convince the contract, not who brings them. So validators that
    join later need no funds.
    """
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
            word(3 * 32),  # the array stands after the three words of the head
            _addresses(validators),
        )
    )


def anchor_call(certificate: Certificate) -> bytes:
    """Calldata of `anchor` for a certificate, all of its signatures included."""
    return b"".join(
        (
            ANCHOR_SELECTOR,
            _header(certificate),
            word((_HEADER_WORDS + 2) * 32),  # the signatures stand after header, round and this offset
            _signatures(certificate),
        )
    )


def handover_call(proof: EpochProof) -> bytes:
    """Calldata of `handover` for the certificate of an epoch's last header and the change that it names."""
    certificate, change = proof.certificate, proof.change
    signatures = _signatures(certificate)
    offset = (_HEADER_WORDS + 4) * 32  # after header, round, two offsets and the policy's digest
    return b"".join(
        (
            HANDOVER_SELECTOR,
            _header(certificate),
            word(offset),
            word(offset + len(signatures)),
            change.policy_digest,
            signatures,
            _addresses(change.validators),
        )
    )


def anchor_call_limit_bytes(signers: int) -> int:
    """Length of the calldata of `anchor` that carries every validator's signature."""
    return 4 + (_HEADER_WORDS + 3) * 32 + (65 * signers + 31) // 32 * 32


def handover_call_limit_bytes(signers: int, following: int) -> int:
    """Length of the calldata of `handover` that carries every validator's signature, and the next validators."""
    return anchor_call_limit_bytes(signers) + (3 + following) * 32


def anchor_gas(signers: int) -> int:
    """Gas limit of an anchor. Measured: 156,000 for the first and 7,600 a signature, so half again to spare."""
    return 250_000 + 15_000 * signers


def handover_gas(signers: int, following: int) -> int:
    """Gas limit of a handover from one set to the next: an anchor, and one new storage slot a validator."""
    return anchor_gas(signers) + 100_000 + 30_000 * following


def deployment_gas(validators: ValidatorSet) -> int:
    """Gas limit of the deployment: code, and one new storage slot a validator."""
    return 2_500_000 + 30_000 * validators.size


def anchor_slot(log_size: int) -> bytes:
    """Storage slot of `anchors[log_size]`."""
    return keccak256(word(log_size) + word(ANCHORS_SLOT))


def anchor_commitment(log_root: Digest, header_id: Digest) -> Digest:
    """What the contract stores under a log size."""
    return keccak256(log_root + header_id)


def _header(certificate: Certificate) -> bytes:
    """The words of the header, and of the round that follows it in every call."""
    header = certificate.header
    return b"".join(
        (
            word(header.epoch),
            word(header.height),
            word(header.time_ms),
            header.parent,
            address_word(header.proposer),
            header.body_digest,
            header.scores_root,
            word(header.log_size),
            header.log_root,
            header.state_root,
            header.validators_hash,
            header.policy_digest,
            header.registry_hash,
            header.next_epoch,
            header.snapshot_hash,
            word(certificate.round),
        )
    )


def _signatures(certificate: Certificate) -> bytes:
    signatures = b"".join(vote.signature for vote in certificate.precommits)
    return word(len(signatures)) + signatures + bytes(-len(signatures) % 32)


def _addresses(validators: ValidatorSet) -> bytes:
    return word(validators.size) + b"".join(map(address_word, validators.members))
