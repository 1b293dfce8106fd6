"""The contract in the EVM: whose certificates it takes, and that the checked-in code is what its source compiles to."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsllm.consensus.certificate import Certificate
from nsllm.consensus.errors import CertificateError
from nsllm.consensus.header import precommit_digest
from nsllm.consensus.typed_data import word
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import CURVE_ORDER, MemberKey, keccak256
from nsllm.errors import SignatureError
from nsllm.governance import anchor_contract, rlp
from nsllm.governance.chain import MAX_FEE_WEI
from nsllm.governance.evm import Evm
from nsllm.governance.evm_store import SqliteStore
from nsllm.governance.merkle_patricia import prove
from nsllm.governance.transaction import Transaction, sign_transaction
from nsllm.ids import Address, Epoch, NetworkId, Round, Signature, TimeMs

Networks = Callable[..., Any]
REPOSITORY = Path(__file__).parents[2]
ARTIFACT = REPOSITORY / "governance" / "contracts" / "NetworkAnchor.json"
COMPILER = REPOSITORY / "tests" / "solidity"


def accepted(net: Any, certificate: Certificate) -> bool:
    """Whether the contract on a fresh chain takes the certificate."""
    chain = net.chain()
    raw = chain.anchor_transaction(certificate)
    receipts = chain.execute([raw], TimeMs(1_700_000_001_000)).receipts
    assert (chain.anchored_head()[0] > 0) == receipts[0][1]
    return receipts[0][1]


def with_signature(certificate: Certificate, at: int, signature: bytes) -> Certificate:
    votes = list(certificate.precommits)
    votes[at] = msgspec.structs.replace(votes[at], signature=Signature(signature))
    return msgspec.structs.replace(certificate, precommits=tuple(votes))


def high_s(signature: bytes) -> bytes:
    """The second spelling of a signature: s negated and the parity flipped."""
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def unfaithful(net: Any, kind: str) -> Certificate:
    """A certificate with exactly one thing wrong."""
    header, quorum = net.header(3, 12), net.keys[: net.validators.quorum]
    stranger, good = MemberKey(keccak256(b"stranger")), net.certify(header)
    match kind:
        case "too few":
            return net.certify(header, signers=quorum[:-1])
        case "one signer twice":
            return net.certify(header, signers=[*quorum[:-1], quorum[-2]])
        case "signers in descending order":
            return net.certify(header, signers=quorum[::-1])
        case "a stranger among them":
            return net.certify(header, signers=sorted([*quorum[:-1], stranger], key=lambda key: key.address))
        case "a stranger beyond the quorum":
            return net.certify(header, signers=sorted([*quorum, stranger], key=lambda key: key.address))
        case "high s":
            return with_signature(good, 1, high_s(good.precommits[1].signature))
        case "v of 0 and 1":
            signature = good.precommits[0].signature
            return with_signature(good, 0, signature[:64] + bytes([signature[64] - 27]))
        case "another network's signatures":
            other = precommit_digest(NetworkId(keccak256(b"another")), 0, 3, Round(0), header.id())
            return net.certify(header, digest=other)
        case "another round's signatures":
            return net.certify(header, round_=1, digest=precommit_digest(net.network, 0, 3, Round(0), header.id()))
        case "one signature of another round":
            other = net.certify(header, digest=precommit_digest(net.network, 0, 3, Round(5), header.id()))
            return with_signature(good, 0, other.precommits[0].signature)
        case "another header's signatures":
            return msgspec.structs.replace(good, header=net.header(3, 13))
        case "another set of validators":
            fewer = ValidatorSet(epoch=Epoch(0), members=net.validators.members[:-1])
            return net.certify(net.header(3, 12, validators=fewer))
        case "another epoch":
            return net.certify(net.header(3, 12, epoch=1))
        case _:
            return net.certify(net.header(3, 0))


UNFAITHFUL = [
    "too few",
    "one signer twice",
    "signers in descending order",
    "a stranger among them",
    "a stranger beyond the quorum",
    "high s",
    "v of 0 and 1",
    "another network's signatures",
    "another round's signatures",
    "one signature of another round",
    "another header's signatures",
    "another set of validators",
]


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("kind", UNFAITHFUL)
def test_contract_and_certificate_refuse_alike(anchor_network: Networks, kind: str, size: int) -> None:
    net = anchor_network(size)
    certificate = unfaithful(net, kind)
    with pytest.raises((CertificateError, SignatureError)):
        certificate.check(net.network, net.validators)
    assert not accepted(net, certificate)


@pytest.mark.parametrize("kind", ["another epoch", "an empty log"])
def test_contract_refuses_what_it_cannot_place(anchor_network: Networks, kind: str) -> None:
    net = anchor_network(4)
    assert not accepted(net, unfaithful(net, kind))


@pytest.mark.parametrize("cut", [-1, 0, 1])
def test_signatures_are_whole(anchor_network: Networks, cut: int) -> None:
    """The quorum's signatures and one more byte, or one less, are no certificate."""
    net = anchor_network(4)
    chain = net.chain()
    call = anchor_contract.anchor_call(net.certify(net.header(1, 5)))
    at = 4 + 16 * 32  # of the length of the signatures
    length = int.from_bytes(call[at : at + 32], "big") + cut
    transaction = Transaction(
        chain_id=7777,
        nonce=1,
        max_priority_fee=0,
        max_fee=MAX_FEE_WEI,
        gas=anchor_contract.anchor_gas(net.validators.size),
        to=chain.contract,
        value=0,
        data=call[:at] + length.to_bytes(32, "big") + call[at + 32 :],
    )
    receipts = chain.execute(
        [sign_transaction(anchor_contract.deployer_key(net.network), transaction)], TimeMs(1_700_000_001_000)
    ).receipts
    assert receipts[0][1] == (cut == 0)


@pytest.mark.parametrize("size", range(1, 9))
def test_any_quorum_is_enough(anchor_network: Networks, size: int) -> None:
    net = anchor_network(size)
    quorum = net.validators.quorum
    for signers in (net.keys[:quorum], net.keys[-quorum:], net.keys):
        certificate = net.certify(net.header(1, 2**40), round_=2**31 - 1, signers=signers)
        certificate.check(net.network, net.validators)
        assert accepted(net, certificate)


@pytest.mark.parametrize("given", [10, 9])
def test_a_stale_log_is_refused(anchor_network: Networks, given: int) -> None:
    net = anchor_network(4)
    chain = net.chain()
    sizes = []
    for height, log_size in ((1, 10), (2, given), (3, 11)):
        raw = chain.anchor_transaction(net.certify(net.header(height, log_size)))
        chain.execute([raw], TimeMs(1_700_000_001_000 + height))
        sizes.append(chain.anchored_head()[0])
    assert sizes == [10, 10, 11]


def deploys(members: tuple[Address, ...]) -> tuple[bool, int]:
    """Whether the constructor takes these validators, and the quorum that it asks of them; in a fresh EVM."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    store = SqliteStore(connection)
    evm = Evm(store, 7777)
    network = NetworkId(keccak256(b"net"))
    deployer = anchor_contract.deployer_key(network)
    evm.create([deployer.address], 1_700_000_000)
    any_set = ValidatorSet(epoch=Epoch(0), members=(Address(bytes(20)),))
    code = anchor_contract.deployment_code(network, any_set)
    # The last two words of the encoded call are the array's length and its one address.
    arguments = len(members).to_bytes(32, "big") + b"".join(bytes(12) + member for member in members)
    creation = Transaction(
        chain_id=7777,
        nonce=0,
        max_priority_fee=0,
        max_fee=MAX_FEE_WEI,
        gas=5_000_000,
        to=b"",
        value=0,
        data=code[: -2 * 32] + arguments,
    )
    done = evm.execute([sign_transaction(deployer, creation)], 0).receipts[0][1]
    if not done:
        return False, 0
    account = rlp.decode(
        prove(evm.state_root(), keccak256(anchor_contract.contract_address(network)), store.__getitem__)[0]
    )
    slot = keccak256(word(anchor_contract.EPOCH_SLOT))
    stored = prove(account[2], slot, store.__getitem__)[0]
    return True, int.from_bytes(rlp.decode(stored), "big") >> 80


def addresses(*numbers: int) -> tuple[Address, ...]:
    return tuple(Address(number.to_bytes(20, "big")) for number in numbers)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 10, 13])
def test_the_constructor_asks_for_the_safe_quorum(size: int) -> None:
    members = addresses(*range(1, size + 1))
    assert deploys(members) == (True, ValidatorSet(epoch=Epoch(0), members=members).quorum)


@pytest.mark.parametrize("members", [(), (0,), (2, 1), (1, 1), (0, 1)])
def test_the_constructor_wants_ascending_validators(members: tuple[int, ...]) -> None:
    assert deploys(addresses(*members)) == (False, 0)


def test_256_validators_fit_into_a_block(anchor_network: Networks) -> None:
    net = anchor_network(256)
    chain = net.chain()
    raw = chain.anchor_transaction(net.certify(net.header(1, 10), signers=net.keys))
    assert chain.execute([raw], TimeMs(1_700_000_001_000)).receipts[0][1]


def test_the_address_is_create_at_nonce_zero() -> None:
    # Known pair: the first contract of 0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0 (Ethereum main net).
    sender = bytes.fromhex("6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0")
    assert keccak256(rlp.encode([sender, 0]))[12:].hex() == "cd234a471b72ba2f1ccf0a70fcaba648a5eecd8d"
    first, second = (anchor_contract.contract_address(NetworkId(keccak256(name))) for name in (b"a", b"b"))
    assert first != second


def test_the_artifact_is_what_the_source_compiles_to() -> None:
    assert (COMPILER / "node_modules" / "solc").is_dir(), "run `npm ci` in tests/solidity, as `make test` does"
    done = subprocess.run(["node", "compile.js"], cwd=COMPILER, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == ARTIFACT.read_text()


def test_the_constants_are_those_of_the_artifact() -> None:
    artifact = json.loads(ARTIFACT.read_text())
    assert artifact["compiler"].startswith("solc 0.8.28+")
    assert keccak256(bytes.fromhex(artifact["deployedBytecode"][2:])) == anchor_contract.CODE_HASH
    slots = {label: tuple(place) for label, place in artifact["storage"].items()}
    assert slots["head"] == (anchor_contract.HEAD_SLOT, 0)
    assert slots["anchors"] == (anchor_contract.ANCHORS_SLOT, 0)
    assert slots["networkId"] == (anchor_contract.NETWORK_ID_SLOT, 0)
    assert slots["epoch"] == (anchor_contract.EPOCH_SLOT, 0)
    assert slots["validatorsHash"] == (anchor_contract.VALIDATORS_HASH_SLOT, 0)


def test_the_fixture_can_be_believed(anchor_network: Networks) -> None:
    """The certificate that every unfaithful one departs from is accepted, here and there."""
    net = anchor_network(4)
    good = net.certify(net.header(3, 12))
    good.check(net.network, net.validators)
    assert accepted(net, good)
    assert not accepted(replace(net, network=NetworkId(keccak256(b"another"))), good)
