"""RFC 6962 trees: known vectors, laws, and refusal of every altered proof."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm import merkle
from nsllm.ids import Digest
from nsllm.merkle import EMPTY_ROOT, Frontier, MerkleError, Node, leaf_hash, node_hash

OWN_VECTORS = Path(__file__).parent / "vectors" / "merkle.json"

# Roots of the trees over the first 1 to 8 leaves of Certificate Transparency's reference tests.
CT_LEAVES = [bytes.fromhex(h) for h in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

sizes = st.integers(1, 70)


def leaves(count: int) -> list[Digest]:
    return [leaf_hash(number.to_bytes(4, "big")) for number in range(count)]


def recursive_root(hashes: list[Digest]) -> Digest:
    """MTH as RFC 6962 section 2.1 writes it down."""
    if len(hashes) < 2:
        return hashes[0] if hashes else EMPTY_ROOT
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return node_hash(recursive_root(hashes[:k]), recursive_root(hashes[k:]))


def vector_files() -> list[dict[str, Any]]:
    """Every vector of transparency-dev/merkle if `NSLLM_VECTORS` names their folder, else the project's own."""
    folder = os.environ.get("NSLLM_VECTORS")
    if not folder:
        loaded: list[dict[str, Any]] = json.loads(OWN_VECTORS.read_text())
        return loaded
    data = Path(folder) / "merkle" / "testdata"
    files = sorted([*data.glob("inclusion/**/*.json"), *data.glob("consistency/**/*.json")])
    return [json.loads(file.read_text()) for file in files]


def accepts(vector: dict[str, Any]) -> bool:
    path = tuple(Digest(base64.b64decode(item)) for item in vector["proof"] or ())
    field = {name: base64.b64decode(vector[name]) for name in ("root", "leafHash", "root1", "root2") if name in vector}
    try:
        if "leafIdx" in vector:
            merkle.verify_inclusion(field["leafHash"], vector["leafIdx"], vector["treeSize"], path, field["root"])
        else:
            merkle.verify_consistency(vector["size1"], vector["size2"], path, field["root1"], field["root2"])
    except MerkleError:
        return False
    return True


def test_vectors_are_judged_as_their_authors_say() -> None:
    vectors = vector_files()
    assert len(vectors) >= 40
    wrong = [vector for vector in vectors if accepts(vector) == vector["wantErr"]]
    assert wrong == []
    assert any(not vector["wantErr"] for vector in vectors)


def test_reference_roots() -> None:
    for size, expected in enumerate(CT_ROOTS, start=1):
        assert merkle.root([leaf_hash(leaf) for leaf in CT_LEAVES[:size]]).hex() == expected


@given(st.integers(0, 70))
def test_every_way_to_the_root_agrees(size: int) -> None:
    hashes = leaves(size)
    expected = recursive_root(hashes)
    frontier, stored = Frontier(), dict[tuple[int, int], Digest]()
    for leaf in hashes:
        frontier, nodes = frontier.grow([leaf])
        stored.update({(node.level, node.position): node.hash for node in nodes})
    assert merkle.root(hashes) == expected == frontier.root()
    assert Frontier().grow(hashes) == (frontier, [Node(*place, digest) for place, digest in stored.items()])
    assert merkle.root_from(lambda level, index: stored[level, index], size) == expected
    assert Frontier.from_bytes(frontier.to_bytes()) == frontier
    # Each leaf completes one node a level at most, n - popcount(n) inner nodes in all.
    assert len(stored) == 2 * size - size.bit_count()


@given(sizes, st.data())
def test_inclusion_holds_and_nothing_else_does(size: int, data: st.DataObject) -> None:
    hashes = leaves(size)
    index = data.draw(st.integers(0, size - 1))
    root, path = merkle.root(hashes), merkle.inclusion_path(hashes, index)
    merkle.verify_inclusion(hashes[index], index, size, path, root)

    other = data.draw(st.integers(0, size))
    if other != index:
        with pytest.raises(MerkleError):
            merkle.verify_inclusion(hashes[index], other, size, path, root)
    with pytest.raises(MerkleError):
        merkle.verify_inclusion(leaf_hash(b"foreign"), index, size, path, root)
    for broken in altered(path, data):
        with pytest.raises(MerkleError):
            merkle.verify_inclusion(hashes[index], index, size, broken, root)


@given(sizes, st.data())
def test_consistency_holds_and_nothing_else_does(size: int, data: st.DataObject) -> None:
    hashes = leaves(size)
    old = data.draw(st.integers(1, size))
    old_root, root = merkle.root(hashes[:old]), merkle.root(hashes)
    path = merkle.consistency_path(hashes, old)
    merkle.verify_consistency(old, size, path, old_root, root)

    if old != size:
        with pytest.raises(MerkleError):
            merkle.verify_consistency(old, size, path, root, old_root)
    for broken in altered(path, data):
        with pytest.raises(MerkleError):
            merkle.verify_consistency(old, size, broken, old_root, root)


def altered(path: tuple[Digest, ...], data: st.DataObject) -> list[tuple[Digest, ...]]:
    extra = leaf_hash(b"extra")
    results = [(*path, extra), (extra, *path)]
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        bit = data.draw(st.integers(0, 255))
        flipped = Digest((int.from_bytes(path[at], "big") ^ (1 << bit)).to_bytes(32, "big"))
        results += [path[:-1], path[1:], (*path[:at], flipped, *path[at + 1 :]), (*path[:at], path[at][:31])]
    return results


def test_large_logs_read_few_nodes() -> None:
    reads: list[tuple[int, int]] = []

    def node(level: int, index: int) -> Digest:
        reads.append((level, index))
        return leaf_hash(b"%d/%d" % (level, index))

    merkle.inclusion_path_from(node, 123_456_789, 2**40 - 12_345)
    assert len(reads) <= 40 * 2
    assert len(set(reads)) == len(reads)


def test_a_mismatch_names_both_roots() -> None:
    hashes = leaves(3)
    expected = merkle.root(leaves(4))
    with pytest.raises(MerkleError) as caught:
        merkle.verify_inclusion(hashes[1], 1, 3, merkle.inclusion_path(hashes, 1), expected)
    assert merkle.root(hashes).hex() in str(caught.value)
    assert expected.hex() in str(caught.value)


def test_children_of_other_lengths_are_refused() -> None:
    left, right = leaves(2)
    root = node_hash(left, right)
    with pytest.raises(MerkleError, match="32 bytes"):
        merkle.verify_inclusion(Digest(left[:31]), 0, 2, (Digest(left[31:] + right),), root)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_provers_refuse_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion_path(leaves(size), index)


@pytest.mark.parametrize("old", [0, 4])
def test_no_consistency_from_the_empty_or_a_larger_tree(old: int) -> None:
    with pytest.raises(ValueError, match="no consistency proof"):
        merkle.consistency_path(leaves(3), old)


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(8) + bytes(32), (1).to_bytes(8, "big"), bytes(9), b"\xff" * 8])
def test_damaged_frontiers_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"frontier|peaks"):
        Frontier.from_bytes(data)


def test_a_leaf_that_is_no_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes; got 31"):
        Frontier().extend([*leaves(1), Digest(bytes(31))])


def test_grow_names_completed_nodes() -> None:
    a, b = leaves(2)
    frontier, nodes = Frontier().append(a).grow([b])
    assert nodes == [Node(0, 1, b), Node(1, 0, node_hash(a, b))]
    assert frontier.peaks == (node_hash(a, b),)
