"""The embedded chain: determinism, what blocks may carry, and survival of a stop in mid-transaction."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from eth.db.header import HeaderDB
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.consensus.certificate import Certificate
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.errors import CertificateError
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey, keccak256
from nsllm.errors import SignatureError
from nsllm.governance import anchor_contract
from nsllm.governance.chain import MAX_FEE_WEI, EmbeddedChain
from nsllm.governance.errors import ChainError, ChainRefusal, NotAnchoredError
from nsllm.governance.evm import Evm
from nsllm.governance.evm_store import SqliteStore
from nsllm.governance.light_client import EpochProof, LightClient
from nsllm.governance.transaction import Transaction, parse_transaction, sign_transaction
from nsllm.ids import ZERO_DIGEST, Digest, Epoch, Height, TimeMs

Networks = Callable[..., Any]


def memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def anchor(chain: EmbeddedChain, net: Any, height: int, log_size: int) -> Digest:
    """Anchor one header through check and execute, as the ledger does; the new state root."""
    certificate = net.certify(net.header(height, log_size))
    raw = chain.anchor_transaction(certificate)
    chain.check([raw], None, TimeMs(0))
    result = chain.execute([raw], certificate.header.time_ms)
    assert result.receipts == ((keccak256(raw), True),)
    assert result.state_root == chain.state_root()
    return result.state_root


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_anchors_are_recorded(anchor_network: Networks, size: int) -> None:
    net = anchor_network(size)
    chain = net.chain()
    assert chain.anchored_head() == (0, ZERO_DIGEST)
    for height, log_size in ((1, 3), (2, 4), (9, 400)):
        anchor(chain, net, height, log_size)
        assert chain.anchored_head() == (log_size, net.header(height, log_size).log_root)


# Printed by another process under another hash seed; the same roots must come out.
REPLAY = """
import sqlite3, sys
from nsllm.consensus.validators import ValidatorSet
from nsllm.governance.chain import EmbeddedChain
from nsllm.ids import Epoch
network, members, blocks = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
validators = ValidatorSet(epoch=Epoch(0), members=tuple(bytes.fromhex(m) for m in members))
connection = sqlite3.connect(":memory:", isolation_level=None)
chain = EmbeddedChain.open(connection, bytes.fromhex(network), validators, 7777, 1_700_000_000_000)
print(chain.state_root().hex())
for block in blocks:
    time_ms, raw = block.split(":")
    print(chain.execute([bytes.fromhex(raw)], int(time_ms)).state_root.hex())
"""


def test_replicas_agree_under_any_hash_seed(anchor_network: Networks) -> None:
    net = anchor_network(4)
    first, second = net.chain(), net.chain()
    roots, blocks = [first.state_root()], []
    for height in (1, 2, 3):
        certificate = net.certify(net.header(height, height * 10), round_=height)
        raw = first.anchor_transaction(certificate)
        roots.append(first.execute([raw], certificate.header.time_ms).state_root)
        second.execute([raw], certificate.header.time_ms)
        blocks.append(f"{certificate.header.time_ms}:{raw.hex()}")
    assert second.state_root() == roots[-1]
    assert len(set(roots)) == len(roots)

    members = ",".join(member.hex() for member in net.validators.members)
    for seed in ("1", "77"):
        command = [sys.executable, "-c", REPLAY, net.network.hex(), members, *blocks]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [root.hex() for root in roots]


def test_no_transactions_no_block(anchor_network: Networks) -> None:
    chain = anchor_network(1).chain()
    before = chain.state_root()
    result = chain.execute([], TimeMs(1_800_000_000_000))
    assert (result.state_root, result.receipts) == (before, ())
    chain.check([], None, TimeMs(0))


def test_headers_within_one_second_still_execute(anchor_network: Networks) -> None:
    net = anchor_network(1)
    chain = net.chain()
    for height in (1, 2, 3):  # all in the genesis's second: the EVM's timestamps rise by themselves
        anchor(chain, net, height, height)
    assert chain.anchored_head()[0] == 3


def test_check_and_execute_agree_on_a_reverting_anchor(anchor_network: Networks) -> None:
    net = anchor_network(4)
    chain = net.chain()
    anchor(chain, net, 1, 10)
    stale = chain.anchor_transaction(net.certify(net.header(2, 10)))
    before = chain.state_root()
    with pytest.raises(ChainRefusal, match="refuses this call"):
        chain.check([stale], None, TimeMs(0))
    assert chain.state_root() == before
    # A quorum that decides it all the same gets a failed receipt; the relayer pays.
    result = chain.execute([stale], TimeMs(1_700_000_100_000))
    assert result.receipts == ((keccak256(stale), False),)
    assert result.state_root != before
    assert chain.anchored_head()[0] == 10


def proposed(net: Any, chain: EmbeddedChain, **changes: Any) -> bytes:
    key = changes.pop("key", anchor_contract.deployer_key(net.network))
    good = parse_transaction(chain.anchor_transaction(net.certify(net.header(1, 5)))).transaction
    return sign_transaction(key, replace(good, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chain_id": 1}, "chain_id 1, expected 7777"),
        ({"nonce": 2}, "nonce 2, expected 1"),
        ({"gas": 30_000_000}, "gas 30000000, expected"),
        ({"gas": 21_000}, "gas 21000, expected"),
        ({"value": 1}, "value 1, expected 0"),
        ({"max_fee": MAX_FEE_WEI + 1}, "max_fee"),
        ({"max_priority_fee": 1}, "max_priority_fee 1, expected 0"),
        ({"to": bytes(20)}, "to 0x0000"),
        ({"to": b"", "data": b"\x60\x00"}, "the anchor contract is"),
        ({"data": b"\x01\x02\x03\x04"}, "not a call of anchor"),
        ({"data": anchor_contract.ANCHOR_SELECTOR + bytes(4096)}, "not a call of anchor"),
        ({"data": anchor_contract.ANCHOR_SELECTOR}, "refuses this call"),
        ({"key": MemberKey(keccak256(b"stranger"))}, "the relayer is"),
    ],
)
def test_only_the_relayers_very_anchor_is_accepted(
    anchor_network: Networks, changes: dict[str, Any], reason: str
) -> None:
    net = anchor_network(4)
    chain = net.chain()
    chain.check([proposed(net, chain)], None, TimeMs(0))
    with pytest.raises(ChainRefusal, match=reason):
        chain.check([proposed(net, chain, **changes)], None, TimeMs(0))


def test_one_anchor_a_block(anchor_network: Networks) -> None:
    net = anchor_network(4)
    chain = net.chain()
    with pytest.raises(ChainRefusal, match="2 transactions"):
        chain.check([proposed(net, chain)] * 2, None, TimeMs(0))


def test_malformed_transactions_are_refused_and_never_raise_in_execution(anchor_network: Networks) -> None:
    net = anchor_network(1)
    chain = net.chain()
    good = proposed(net, chain)
    odd = {
        "empty": b"",
        "another type": b"\x01" + good[1:],
        "cut": good[:-1],
        "trailing": good + b"\0",
        "legacy": b"\xc0",
        "poor": proposed(net, chain, value=10**30),
        "no gas": proposed(net, chain, gas=1),
        "beyond the block": proposed(net, chain, gas=30_000_001),
        "tip above fee": proposed(net, chain, max_priority_fee=MAX_FEE_WEI + 1),
        "cheap": proposed(net, chain, max_fee=1),
        "long init code": proposed(net, chain, to=b"", data=bytes(49153), gas=5_000_000),
        "stranger": proposed(net, chain, key=MemberKey(keccak256(b"poor stranger"))),
        "future nonce": proposed(net, chain, nonce=2**64 - 1),
        "other chain": proposed(net, chain, chain_id=1),
    }
    for name, raw in odd.items():
        with pytest.raises(ChainRefusal):
            chain.check([raw], None, TimeMs(0))
        before = chain.state_root()
        result = chain.execute([raw], TimeMs(1_700_000_100_000))
        assert result.receipts == ((keccak256(raw), False),), name
        assert result.state_root == before, name
    # Bad ones among good ones are passed over.
    result = chain.execute([odd["cut"], good, odd["cut"]], TimeMs(1_700_000_100_000))
    assert [success for _, success in result.receipts] == [False, True, False]


@given(st.data())
@settings(max_examples=60)
def test_an_altered_transaction_never_counts_as_the_proposers(data: st.DataObject) -> None:
    key = MemberKey(keccak256(b"signer"))
    transaction = Transaction(
        chain_id=7777, nonce=3, max_priority_fee=0, max_fee=9, gas=21_000, to=bytes(20), value=1, data=bytes(range(99))
    )
    raw = sign_transaction(key, transaction)
    parsed = parse_transaction(raw)
    assert (parsed.transaction, parsed.sender, parsed.hash) == (transaction, key.address, keccak256(raw))
    at = data.draw(st.integers(0, len(raw) - 1))
    altered = bytearray(raw)
    altered[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ChainRefusal):
        assert parse_transaction(bytes(altered)).sender != key.address


def test_a_stop_in_mid_transaction_loses_the_block_only(anchor_network: Networks, tmp_path: Path) -> None:
    net = anchor_network(4)
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    chain = net.chain(connection)
    connection.execute("BEGIN IMMEDIATE")
    first = anchor(chain, net, 1, 10)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    assert anchor(chain, net, 2, 20) != first
    connection.close()  # as a killed process does: nothing was committed

    again = net.chain(sqlite3.connect(path, isolation_level=None))
    assert again.state_root() == first
    assert again.anchored_head()[0] == 10
    reference = net.chain()
    anchor(reference, net, 1, 10)
    assert anchor(again, net, 2, 20) == anchor(reference, net, 2, 20)


def test_a_rolled_back_block_is_forgotten_at_once(anchor_network: Networks) -> None:
    net = anchor_network(4)
    connection = memory()
    chain = net.chain(connection)
    before = chain.state_root()
    connection.execute("BEGIN IMMEDIATE")
    after = anchor(chain, net, 1, 10)
    connection.execute("ROLLBACK")
    assert chain.state_root() == before
    assert chain.anchored_head() == (0, ZERO_DIGEST)
    assert anchor(chain, net, 1, 10) == after


def test_an_opening_that_is_rolled_back_begins_again(anchor_network: Networks) -> None:
    net = anchor_network(1)
    connection = memory()
    connection.execute("BEGIN IMMEDIATE")
    chain = net.chain(connection)
    root = chain.state_root()
    connection.execute("ROLLBACK")
    assert net.chain(connection).state_root() == root


def test_another_networks_file_is_refused(anchor_network: Networks) -> None:
    connection = memory()
    anchor_network(4).chain(connection)
    with pytest.raises(ChainError, match="no anchor contract"):
        anchor_network(4, "another").chain(connection)


def test_what_is_not_there_is_named(anchor_network: Networks) -> None:
    net = anchor_network(1)
    chain = net.chain()
    anchor(chain, net, 1, 10)
    with pytest.raises(NotAnchoredError, match="log size 9"):
        chain.prove_anchor(9)
    with pytest.raises(ChainError, match="not complete"):
        chain.prove_anchor(10, keccak256(b"unknown state"))


def test_the_store_joins_or_makes_a_transaction() -> None:
    connection = memory()
    store = SqliteStore(connection)
    with pytest.raises(RuntimeError), store.atomic_batch() as batch:
        batch[b"a"] = b"1"
        raise RuntimeError
    assert b"a" not in store
    connection.execute("BEGIN IMMEDIATE")
    with store.atomic_batch() as batch:
        batch[b"a"] = b"1"
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    with pytest.raises(KeyError):
        store[b"a"]
    with store.atomic_batch() as batch:
        batch[b"a"], batch[b"b"] = b"1", b"2"
    assert not connection.in_transaction
    del store[b"a"]
    with pytest.raises(KeyError):
        del store[b"a"]
    assert store[b"b"] == b"2"
    with pytest.raises(ChainError, match="autocommit"):
        SqliteStore(sqlite3.connect(":memory:"))


def test_the_certificate_travels_whole(anchor_network: Networks) -> None:
    """All signatures of a certificate are checked by the contract, also those beyond the quorum."""
    net = anchor_network(7)
    chain = net.chain()
    full: Certificate = net.certify(net.header(1, 5), signers=net.keys)
    raw = chain.anchor_transaction(full)
    assert len(parse_transaction(raw).transaction.data) == anchor_contract.anchor_call_limit_bytes(net.validators.size)
    chain.check([raw], None, TimeMs(0))


def handed_over(net: Any, names: Sequence[str], *, log_size: int = 12, height: int = 3, epoch: int = 0) -> Any:
    """A handover from a network's validators to others, and the network of those."""
    keys = tuple(sorted((MemberKey(keccak256(name.encode())) for name in names), key=lambda key: key.address))
    validators = ValidatorSet(epoch=Epoch(epoch + 1), members=tuple(key.address for key in keys))
    change = EpochChange(validators=validators, policy_digest=keccak256(b"another policy"))
    header = msgspec.structs.replace(net.header(height, log_size, epoch=epoch), next_epoch=change.digest())
    return EpochProof(certificate=net.certify(header), change=change), replace(net, keys=keys, validators=validators)


def test_the_contract_learns_the_next_validators_from_those_before(anchor_network: Networks) -> None:
    net = anchor_network(4)
    chain, replica = net.chain(), net.chain()
    proof, following = handed_over(net, ["a", "b", "c", "d", "e"])
    raw = chain.handover_transaction(proof)
    chain.check([raw], following.validators, TimeMs(0))
    for each in (chain, replica):
        assert each.execute([raw], TimeMs(1_700_000_100_000)).receipts[0][1]
        assert (each.epoch(), each.anchored_head()[0]) == (1, 12), "the boundary's log root is recorded with it"
    assert chain.state_root() == replica.state_root()
    # The validators before are strangers now, those after certify.
    old = chain.anchor_transaction(net.certify(net.header(4, 20)))
    with pytest.raises(ChainRefusal, match="refuses this call"):
        chain.check([old], None, TimeMs(0))
    new = chain.anchor_transaction(following.certify(following.header(4, 20, epoch=1)))
    chain.check([new], None, TimeMs(0))
    assert chain.execute([new], TimeMs(1_700_000_101_000)).receipts[0][1]
    # And they hand over in turn, though the log has not grown meanwhile.
    proof, last = handed_over(following, ["f"], log_size=20, height=5, epoch=1)
    raw = chain.handover_transaction(proof)
    chain.check([raw], last.validators, TimeMs(0))
    assert chain.execute([raw], TimeMs(1_700_000_102_000)).receipts[0][1]
    assert (chain.epoch(), chain.anchored_head()[0]) == (2, 20)


def test_a_handover_comes_before_further_anchors(anchor_network: Networks) -> None:
    net = anchor_network(4)
    chain = net.chain()
    proof, following = handed_over(net, ["a", "b"])
    anchored = chain.anchor_transaction(proof.certificate)
    with pytest.raises(ChainRefusal, match="transaction with gas"):
        chain.check([anchored], following.validators, TimeMs(0))
    with pytest.raises(ChainRefusal, match="transaction with gas"):
        chain.check([chain.handover_transaction(proof)], None, TimeMs(0))
    data = parse_transaction(anchored).transaction.data
    gas = anchor_contract.handover_gas(4, 2)
    with pytest.raises(ChainRefusal, match="not a call of handover"):
        chain.check([proposed(net, chain, data=data, gas=gas)], following.validators, TimeMs(0))


WRONG_HANDOVERS: dict[str, Callable[[Any, EpochProof], EpochProof]] = {
    "other validators than the header names": lambda net, proof: msgspec.structs.replace(
        proof, change=handed_over(net, ["x", "y", "z"])[0].change
    ),
    "another policy than the header names": lambda net, proof: msgspec.structs.replace(
        proof, change=msgspec.structs.replace(proof.change, policy_digest=keccak256(b"x"))
    ),
    "a header within the epoch": lambda net, proof: msgspec.structs.replace(
        proof, certificate=net.certify(msgspec.structs.replace(proof.certificate.header, next_epoch=ZERO_DIGEST))
    ),
    "too few signatures": lambda net, proof: msgspec.structs.replace(
        proof, certificate=net.certify(proof.certificate.header, signers=net.keys[:2])
    ),
    "signed by those who come": lambda net, proof: msgspec.structs.replace(
        proof, certificate=handed_over(net, ["a", "b", "c"])[1].certify(proof.certificate.header)
    ),
    "an epoch skipped": lambda net, proof: handed_over(net, ["a", "b", "c"], epoch=1)[0],
}


@pytest.mark.parametrize("name", WRONG_HANDOVERS)
def test_contract_and_light_client_refuse_a_wrong_handover_alike(anchor_network: Networks, name: str) -> None:
    net = anchor_network(4)
    chain = net.chain()
    proof, following = handed_over(net, ["a", "b", "c"])
    trust = LightClient(net.network, net.validators, proof.certificate.header.policy_digest, Height(0))
    assert trust.advance(proof).validators == following.validators
    wrong = WRONG_HANDOVERS[name](net, proof)
    assert wrong != proof
    with pytest.raises((CertificateError, SignatureError)):
        trust.advance(wrong)
    with pytest.raises(ChainRefusal, match="refuses this call"):
        chain.check([chain.handover_transaction(wrong)], following.validators, TimeMs(0))
    chain.check([chain.handover_transaction(proof)], following.validators, TimeMs(0))


def test_256_validators_hand_over_to_as_many(anchor_network: Networks) -> None:
    net = anchor_network(256)
    chain = net.chain()
    proof, following = handed_over(net, [f"next {i}" for i in range(256)])
    proof = msgspec.structs.replace(proof, certificate=net.certify(proof.certificate.header, signers=net.keys))
    raw = chain.handover_transaction(proof)
    assert len(parse_transaction(raw).transaction.data) == anchor_contract.handover_call_limit_bytes(256, 256)
    chain.check([raw], following.validators, TimeMs(0))


def test_importing_the_chain_leaves_the_recursion_limit_alone():
    """py-evm lifts it to 100,000, where a parser of nested text runs over the end of the C stack."""
    program = (
        "import sys; before = sys.getrecursionlimit(); import nsllm.node.peer; print(before, sys.getrecursionlimit())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert after == before


def test_what_was_checked_is_not_computed_again(anchor_network: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    net = anchor_network(4, "checked, then executed")
    chain, time_ms = net.chain(), TimeMs(1_700_000_100_000)
    raw = chain.anchor_transaction(net.certify(net.header(1, 10)))
    computed = []

    def counted(evm: Evm, *arguments: Any, real: Any = Evm.run) -> Any:
        computed.append(arguments)
        return real(evm, *arguments)

    monkeypatch.setattr(Evm, "run", counted)
    chain.check([raw], None, time_ms)
    assert chain.execute([raw], time_ms).receipts == ((keccak256(raw), True),)
    assert computed == [((raw,), time_ms)]


def test_what_was_only_opened_is_read_even_if_another_chain_knows_it(anchor_network: Networks) -> None:
    """Walks are remembered for states that a chain made itself: a damaged file is noticed all the same."""
    net = anchor_network(4, "known to one, damaged at another")
    whole, connection = net.chain(), memory()
    damaged = net.chain(connection)
    for chain in (whole, damaged):
        anchor(chain, net, 1, 10)
        assert chain.prove_anchor(10) == whole.prove_anchor(10)
    connection.execute("DELETE FROM evm WHERE key = ?", (whole.state_root(),))
    with pytest.raises(ChainError, match="not complete"):
        net.chain(connection)


def test_the_state_root_is_that_of_py_evms_head(anchor_network: Networks) -> None:
    net, connection = anchor_network(4, "head"), memory()
    chain = net.chain(connection)
    for height in (1, 2):
        anchor(chain, net, height, 10 * height)
        head = HeaderDB(SqliteStore(connection)).get_canonical_head()
        assert chain.state_root() == head.state_root
