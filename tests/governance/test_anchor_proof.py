"""Proofs of anchors: they hold where they were made, nowhere else, and no byte of them can change unnoticed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.consensus.header import Header
from nsllm.crypto import keccak256
from nsllm.errors import EncodingError
from nsllm.governance import merkle_patricia, rlp
from nsllm.governance.anchor_proof import AnchorProof, verify_anchor
from nsllm.governance.chain import EmbeddedChain
from nsllm.governance.errors import ReceiptError
from nsllm.ids import Digest, NetworkId, TimeMs

Networks = Callable[..., Any]
LIMIT_BYTES = 64 * 1024


def anchored(net: Any, sizes: range) -> tuple[EmbeddedChain, list[Header], list[Digest]]:
    """A chain with an anchor at each size, its headers, and the state root after each."""
    chain, headers, roots = net.chain(), [], []
    for height, size in enumerate(sizes, start=1):
        header = net.header(height, size)
        raw = chain.anchor_transaction(net.certify(header))
        roots.append(chain.execute([raw], TimeMs(header.time_ms)).state_root)
        headers.append(header)
    return chain, headers, roots


def verify(proof: AnchorProof, net: Any, root: Digest, header: Header, **changes: Any) -> None:
    fields = {
        "network": net.network,
        "state_root": root,
        "log_size": header.log_size,
        "log_root": header.log_root,
        "header_id": header.id(),
    }
    verify_anchor(proof, **{**fields, **changes})


@pytest.mark.parametrize("size", [1, 4, 7])
def test_every_anchor_is_proved_in_every_later_state(anchor_network: Networks, size: int) -> None:
    net = anchor_network(size)
    chain, headers, roots = anchored(net, range(5, 50, 4))
    for at, header in enumerate(headers):
        for root in (roots[at], roots[-1]):
            proof = chain.prove_anchor(header.log_size, root)
            verify(canonical.decode(canonical.encode(proof), AnchorProof, limit_bytes=LIMIT_BYTES), net, root, header)
    verify(chain.prove_anchor(5), net, chain.state_root(), headers[0])


def test_a_proof_holds_for_nothing_else(anchor_network: Networks) -> None:
    net = anchor_network(4)
    chain, headers, roots = anchored(net, range(5, 20, 5))
    first, second = headers[0], headers[1]
    proof = chain.prove_anchor(first.log_size)
    foreign = keccak256(b"foreign")
    for changes, field in (
        ({"network": NetworkId(foreign)}, "contract"),
        ({"state_root": foreign}, "account_nodes"),
        ({"state_root": roots[0]}, "account_nodes"),
        ({"log_size": second.log_size}, "storage_nodes"),
        ({"log_root": foreign}, "storage_nodes"),
        ({"header_id": second.id()}, "storage_nodes"),
    ):
        with pytest.raises(ReceiptError, match=f"anchor.{field}") as caught:
            verify(proof, net, roots[-1], first, **changes)
        assert (caught.value.step, caught.value.field) == ("anchor", f"anchor.{field}")


def test_nodes_beside_the_way_are_refused(anchor_network: Networks) -> None:
    net = anchor_network(4)
    chain, headers, roots = anchored(net, range(5, 20, 5))
    proof = chain.prove_anchor(5)
    for field in ("account_nodes", "storage_nodes"):
        nodes = getattr(proof, field)
        assert len(nodes) > 1
        for changed in (nodes[:-1], nodes[1:], (*nodes, nodes[-1]), (*nodes, b"\xc0"), nodes[::-1], (nodes[0], *nodes)):
            with pytest.raises(ReceiptError, match=f"anchor.{field}"):
                verify(msgspec.structs.replace(proof, **{field: changed}), net, roots[-1], headers[0])


def test_no_byte_changes_unnoticed(anchor_network: Networks) -> None:
    """Every byte of the canonical spelling, with two of its bits and with its complement."""
    net = anchor_network(4)
    chain, headers, roots = anchored(net, range(5, 20, 5))
    good = canonical.encode(chain.prove_anchor(5))
    for at in range(len(good)):
        for mask in (1, 0x80, 0xFF):
            altered = bytearray(good)
            altered[at] ^= mask
            with pytest.raises((ReceiptError, EncodingError)):
                proof = canonical.decode(bytes(altered), AnchorProof, limit_bytes=LIMIT_BYTES)
                verify(proof, net, roots[-1], headers[0])


def test_another_contracts_account_is_refused(anchor_network: Networks) -> None:
    """A validator's account stands in the same state, but it is not the contract."""
    net = anchor_network(4)
    chain, headers, roots = anchored(net, range(5, 10, 5))
    proof = msgspec.structs.replace(chain.prove_anchor(5), contract=net.keys[0].address)
    with pytest.raises(ReceiptError, match="is not the network's contract"):
        verify(proof, net, roots[-1], headers[0])


def account_proof(net: Any, fields: list[rlp.Encodable]) -> tuple[AnchorProof, Digest]:
    """A state of one account, made up: what a lying state root could hold at the contract's address."""
    contract = net.chain().contract
    leaf = rlp.encode([b"\x20" + keccak256(contract), rlp.encode(fields)])
    return AnchorProof(contract=contract, account_nodes=(leaf,), storage_nodes=(b"\xc0",)), keccak256(leaf)


def test_other_code_at_the_address_is_refused(anchor_network: Networks) -> None:
    net = anchor_network(1)
    proof, root = account_proof(net, [1, 0, merkle_patricia.EMPTY_TRIE_ROOT, keccak256(b"other code")])
    with pytest.raises(ReceiptError, match="code has hash"):
        verify(proof, net, root, net.header(1, 5))
    proof, root = account_proof(net, [1, 0, merkle_patricia.EMPTY_TRIE_ROOT])
    with pytest.raises(ReceiptError, match="an account has"):
        verify(proof, net, root, net.header(1, 5))


def test_verifying_loads_no_evm_no_torch_no_libp2p() -> None:
    code = (
        "import sys, nsllm.governance.anchor_proof;"
        "print(sorted({'eth', 'torch', 'libp2p', 'rlp', 'trie', 'trio', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def trie_of(pairs: dict[bytes, bytes]) -> tuple[Digest, Callable[[Digest], bytes]]:
    """A trie made by another implementation, with keys as they are."""
    from trie import HexaryTrie

    nodes: dict[bytes, bytes] = {}
    trie = HexaryTrie(nodes)
    for key, value in pairs.items():
        trie[key] = value
    return Digest(trie.root_hash), nodes.__getitem__


@given(
    st.dictionaries(st.binary(min_size=2, max_size=2), st.binary(min_size=1, max_size=40), max_size=30),
    st.binary(min_size=2, max_size=2),
)
@settings(max_examples=100)
def test_walks_agree_with_another_implementation(pairs: dict[bytes, bytes], absent: bytes) -> None:
    """Short keys make extensions, inlined nodes and values in branches' children."""
    root, fetch = trie_of(pairs)
    for key in [*pairs, absent]:
        value, nodes = merkle_patricia.prove(root, key, fetch)
        assert value == pairs.get(key)
        assert merkle_patricia.verify(root, key, nodes) == value
        with pytest.raises(ValueError, match="more than needed"):
            merkle_patricia.verify(root, key, (*nodes, b"\xc0"))


@pytest.mark.parametrize(
    "node",
    [
        b"",
        b"\xc0",
        b"\x83abc",
        rlp.encode([b"\x20", b"v", b"third"]),
        rlp.encode([b"", b"v"]),
        rlp.encode([b"\x40", b"v"]),
        rlp.encode([b"\x21", b"v"]) + b"\0",
        rlp.encode([b"\x05", b"v"]),
        rlp.encode([b"\x15", b"short reference"]),
        rlp.encode([[], b"v"]),
        rlp.encode([b"\x20" + keccak256(b"key"), [b"list"]]),
    ],
)
def test_malformed_nodes_are_refused_or_prove_nothing(node: bytes) -> None:
    key = keccak256(b"key")
    with contextlib.suppress(ValueError):
        assert merkle_patricia.verify(keccak256(node), key, (node,)) is None


items = st.recursive(st.binary(max_size=70), lambda inner: st.lists(inner, max_size=5), max_leaves=12)


@given(items)
def test_rlp_agrees_with_another_implementation(item: Any) -> None:
    import rlp as reference

    encoded = rlp.encode(item)
    assert encoded == reference.encode(item)
    assert rlp.decode(encoded) == item


@given(st.binary(max_size=80))
def test_rlp_has_one_spelling(data: bytes) -> None:
    try:
        item = rlp.decode(data)
    except ValueError:
        return
    assert rlp.encode(item) == data


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "8161",
        "817f",
        "b80161",
        "b90038" + "61" * 56,
        "b837" + "61" * 55,
        "c16161",
        "c2c1",
        "f80161",
        "8261",
        "f800",
        "bfffffffffffffffff",
        "b8",
    ],
)
def test_other_spellings_of_rlp_are_refused(spelling: str) -> None:
    with pytest.raises(ValueError, match="RLP"):
        rlp.decode(bytes.fromhex(spelling))


def test_deeply_nested_rlp_is_refused() -> None:
    data = b"\xc0"
    for _ in range(30):
        data = bytes([0xC0 + len(data)]) + data
    with pytest.raises(ValueError, match="deeper"):
        rlp.decode(data)
