"""The header's EIP-712 digest, against an independent encoder written from the specification alone.

Source: EIP-712 (`encodeType`, `hashStruct`, `"\\x19\\x01" ‖ domainSeparator ‖ hashStruct(message)`), with the hash of
`eth_utils`. The pinned digests guard both against a common change.
"""

from __future__ import annotations

import msgspec
import pytest
from eth_utils import keccak

from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.validators import ValidatorSet

TYPES = {
    "EIP712Domain": [("name", "string"), ("version", "string"), ("salt", "bytes32")],
    "Header": [
        ("epoch", "uint64"), ("height", "uint64"), ("timeMs", "uint64"), ("parent", "bytes32"), ("proposer", "address"),
        ("bodyDigest", "bytes32"), ("scoresRoot", "bytes32"), ("logSize", "uint64"), ("logRoot", "bytes32"),
        ("stateRoot", "bytes32"), ("validatorsHash", "bytes32"), ("policyDigest", "bytes32"),
        ("registryHash", "bytes32"), ("nextEpoch", "bytes32"), ("snapshotHash", "bytes32"),
    ],
    "Precommit": [("epoch", "uint64"), ("height", "uint64"), ("round", "uint32"), ("header", "Header")],
    "ValidatorSet": [("epoch", "uint64"), ("members", "address[]")],
    "EpochChange": [("epoch", "uint64"), ("validatorsHash", "bytes32"), ("policyDigest", "bytes32")],
}  # fmt: skip


def encode_type(name: str) -> str:
    """The type, then the types that it refers to, sorted by name."""
    used, todo = set(), [name]
    while todo:
        for _, kind in TYPES[todo.pop()]:
            if kind in TYPES and kind not in used:
                used.add(kind)
                todo.append(kind)
    return "".join(f"{kind}({','.join(f'{t} {field}' for field, t in TYPES[kind])})" for kind in [name, *sorted(used)])


def hash_struct(name: str, values: dict) -> bytes:
    words = [keccak(text=encode_type(name))]
    for field, kind in TYPES[name]:
        value = values[field]
        if kind in TYPES:
            words.append(hash_struct(kind, value))
        elif kind == "string":
            words.append(keccak(text=value))
        elif kind == "address[]":
            words.append(keccak(b"".join(member.rjust(32, b"\0") for member in value)))
        elif kind.startswith("uint"):
            words.append(value.to_bytes(32, "big"))
        else:
            words.append(value.rjust(32, b"\0") if kind == "address" else value.ljust(32, b"\0"))
    return keccak(b"".join(words))


def typed_data_digest(network: bytes, epoch: int, height: int, round_: int, header: dict) -> bytes:
    domain = hash_struct("EIP712Domain", {"name": "NS-LLM", "version": "1", "salt": network})
    message = {"epoch": epoch, "height": height, "round": round_, "header": header}
    return keccak(b"\x19\x01" + domain + hash_struct("Precommit", message))


NETWORK = bytes(range(32))
FIELDS = {
    "epoch": 3, "height": 7, "time_ms": 1_700_000_000_123, "parent": b"\x01" * 32, "proposer": b"\x02" * 20,
    "body_digest": b"\x03" * 32, "scores_root": b"\x04" * 32, "log_size": 99, "log_root": b"\x05" * 32,
    "state_root": b"\x06" * 32, "validators_hash": b"\x07" * 32, "policy_digest": b"\x08" * 32,
    "registry_hash": b"\x09" * 32, "next_epoch": b"\x0a" * 32, "snapshot_hash": b"\x0d" * 32,
}  # fmt: skip


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def test_against_an_independent_encoder():
    header = Header(**FIELDS)
    plain = {camel(name): value for name, value in FIELDS.items()}
    assert header.id() == hash_struct("Header", plain)
    assert precommit_digest(NETWORK, 3, 7, 2, header.id()) == typed_data_digest(NETWORK, 3, 7, 2, plain)


def test_validator_sets_and_epoch_changes_are_structs_too():
    members = (b"\x0b" * 20, b"\x0c" * 20)
    validators = ValidatorSet(epoch=4, members=members)
    change = EpochChange(validators=validators, policy_digest=b"\x08" * 32)
    assert validators.digest() == hash_struct("ValidatorSet", {"epoch": 4, "members": members})
    plain = {"epoch": 4, "validatorsHash": validators.digest(), "policyDigest": b"\x08" * 32}
    assert change.digest() == hash_struct("EpochChange", plain)


def test_pinned_vector():
    header = Header(**FIELDS)
    assert header.id().hex() == "b387c0d50b7428dbca22d9e614b3da591cf145ba0c4cd17f85a7aaf9c200bf94"
    assert (
        precommit_digest(NETWORK, 3, 7, 2, header.id()).hex()
        == "f89744c1b1bff1521532a63433629918e0b0789df955811b49d169b013b2d968"
    )


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_is_in_the_id(name):
    header = Header(**FIELDS)
    value = FIELDS[name]
    changed = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    assert msgspec.structs.replace(header, **{name: changed}).id() != header.id()


def test_round_and_network_are_in_the_digest():
    header_id = Header(**FIELDS).id()
    digests = {
        precommit_digest(network, epoch, height, round_, header_id)
        for network in (NETWORK, bytes(32))
        for epoch in (3, 4)
        for height in (7, 8)
        for round_ in (0, 1)
    }
    assert len(digests) == 16
