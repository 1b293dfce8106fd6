"""RFC 6962 Merkle trees: hashes, inclusion and consistency proofs, verification. Pure; SHA-256.

Three ways to hold a tree, one set of proofs:

* a sequence of leaf hashes, for small trees (a block's scores): `root`, `inclusion_path`, `consistency_path`;
* a `NodeSource` over stored complete subtrees, for large logs: `root_from`, `inclusion_path_from`,
  `consistency_path_from` read O(log n) nodes and recompute nothing below them;
* a `Frontier`, for logs that grow: size, root and O(log n) state, and for each appended leaf the nodes to store.

Verifiers raise `MerkleError`, provers that are asked for what cannot be raise `ValueError`.

Source: RFC 6962 section 2.1 (tree, paths), RFC 9162 sections 2.1.3.2 and 2.1.4.2 (verification).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from nsllm.errors import PeerFault
from nsllm.ids import Digest

EMPTY_ROOT: Final = Digest(hashlib.sha256(b"").digest())
"""Root of the tree without leaves, RFC 6962 section 2.1."""
HASH_BYTES: Final = 32
MAX_SIZE: Final = 2**63 - 1
"""Leaves of the largest tree that is handled; a path then has at most 63 hashes."""

NodeSource = Callable[[int, int], Digest]
"""`(level, index)` to the hash of the complete subtree over the `2**level` leaves from `index * 2**level` on."""


class MerkleError(PeerFault):
    """A proof that does not lead to the expected root; the message holds the computed and the expected root."""

    code = "bad_merkle_proof"


class Node(NamedTuple):
    """A complete subtree: what a log stores, and what a `NodeSource` answers with."""

    level: int
    position: int
    hash: Digest


def leaf_hash(data: bytes) -> Digest:
    """SHA-256(0x00 ‖ data), RFC 6962 section 2.1."""
    return Digest(hashlib.sha256(b"\x00" + data).digest())


def node_hash(left: Digest, right: Digest) -> Digest:
    """SHA-256(0x01 ‖ left ‖ right), RFC 6962 section 2.1."""
    return Digest(hashlib.sha256(b"\x01" + left + right).digest())


def root(leaf_hashes: Iterable[Digest]) -> Digest:
    """Merkle tree hash over leaf hashes in order.

    >>> root([]).hex()[:8], root([leaf_hash(b"")]).hex()[:8]
    ('e3b0c442', '6e340b9c')
    """
    level = list(leaf_hashes)
    if any(len(leaf) != HASH_BYTES for leaf in level):
        raise ValueError(f"a leaf hash has {HASH_BYTES} bytes")
    while len(level) > 1:
        parents = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = parents + level[2 * len(parents) :]  # the last one of an odd number is lifted as it is
    return level[0] if level else EMPTY_ROOT


def inclusion_path(leaf_hashes: Sequence[Digest], index: int) -> tuple[Digest, ...]:
    """Audit path of leaf `index`, siblings from the leaf up. O(n).

    Raises:
        ValueError: no such leaf.
    """
    return inclusion_path_from(complete_nodes(leaf_hashes), index, len(leaf_hashes))


def consistency_path(leaf_hashes: Sequence[Digest], old_size: int) -> tuple[Digest, ...]:
    """Proof that the tree over the first `old_size` leaves is a prefix of the whole tree. O(n).

    Raises:
        ValueError: `old_size` is 0 (nothing to prove) or beyond the tree.
    """
    return consistency_path_from(complete_nodes(leaf_hashes), old_size, len(leaf_hashes))


def complete_nodes(leaf_hashes: Sequence[Digest]) -> NodeSource:
    """The nodes over leaf hashes, computed once for any number of paths."""
    levels: list[Sequence[Digest]] = [leaf_hashes]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)])
    return lambda level, index: levels[level][index]


def root_from(nodes: NodeSource, size: int) -> Digest:
    """Root of the first `size` leaves, from O(log n) stored nodes."""
    return _range_root(nodes, 0, size) if size else EMPTY_ROOT


def inclusion_path_from(nodes: NodeSource, index: int, size: int) -> tuple[Digest, ...]:
    """PATH(index, D[size]) of RFC 6962 section 2.1.1, from O(log² n) stored nodes.

    Raises:
        ValueError: no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    start, end = 0, size
    down: list[Digest] = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            down.append(_range_root(nodes, middle, end))
            end = middle
        else:
            down.append(_range_root(nodes, start, middle))
            start = middle
    return tuple(reversed(down))


def consistency_path_from(nodes: NodeSource, old_size: int, size: int) -> tuple[Digest, ...]:
    """PROOF(old_size, D[size]) of RFC 6962 section 2.1.2; empty if the sizes are equal.

    Raises:
        ValueError: `old_size` is 0 (nothing to prove) or above `size`.
    """
    if not 0 < old_size <= size:
        raise ValueError(f"no consistency proof from size {old_size} to size {size}")
    start, end = 0, size
    down: list[Digest] = []
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            down.append(_range_root(nodes, middle, end))
            end = middle
        else:
            down.append(_range_root(nodes, start, middle))
            start = middle
    # SUBPROOF's flag b: the old root itself is left out, because the verifier has it.
    if start:
        down.append(_range_root(nodes, start, end))
    return tuple(reversed(down))


def verify_inclusion(leaf: Digest, index: int, size: int, path: Sequence[Digest], root: Digest) -> None:
    """Pass silently if `path` proves that leaf hash `leaf` stands at `index` of the tree `root` of `size` leaves.

    Raises:
        MerkleError: names the computed and the expected root, or why the path cannot be one.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise MerkleError(f"leaf {index} cannot stand in a tree of {size} leaves")
    _check_hashes((leaf, *path))
    computed = leaf
    for sibling, on_left in zip(path, _sides(index, size - 1, len(path)), strict=True):
        computed = node_hash(sibling, computed) if on_left else node_hash(computed, sibling)
    _check_root("inclusion", computed, root)


def verify_consistency(old_size: int, size: int, path: Sequence[Digest], old_root: Digest, root: Digest) -> None:
    """Pass silently if `path` proves that the tree `old_root` is a prefix of the tree `root`.

    An empty old tree is refused: every log extends it, so such a proof would say nothing.

    Raises:
        MerkleError: names the computed and the expected root, or why the path cannot be one.
    """
    if not 0 < old_size <= size <= MAX_SIZE:
        raise MerkleError(f"no consistency proof leads from size {old_size} to size {size}")
    _check_hashes(path)
    if old_size == size:
        if path:
            raise MerkleError(f"consistency path of {len(path)} hashes between equal sizes {size}")
        _check_root("consistency", old_root, root)
        return
    if old_size & (old_size - 1) == 0:  # a power of two: the old root is a node of the new tree and opens the path
        path = (old_root, *path)
    if not path:
        raise MerkleError(f"empty consistency path between sizes {old_size} and {size}")
    # Start at the largest complete subtree that ends where the old tree ends: the first hash of the path.
    level = (old_size & -old_size).bit_length() - 1
    old_computed = computed = path[0]
    sides = _sides((old_size - 1) >> level, (size - 1) >> level, len(path) - 1)
    for sibling, on_left in zip(path[1:], sides, strict=True):
        computed = node_hash(sibling, computed) if on_left else node_hash(computed, sibling)
        if on_left:  # what stands to the right is no part of the old tree
            old_computed = node_hash(sibling, old_computed)
    _check_root("old tree of consistency", old_computed, old_root)
    _check_root("consistency", computed, root)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The right edge of a growing tree: enough to append and to know the root. A value; `append` gives the next one."""

    size: int = 0
    peaks: tuple[Digest, ...] = ()
    """Roots of the maximal complete subtrees, largest first: one for each 1 bit of `size`."""

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE or len(self.peaks) != self.size.bit_count():
            raise ValueError(f"a tree of {self.size} leaves does not have {len(self.peaks)} peaks")
        if any(len(peak) != HASH_BYTES for peak in self.peaks):
            raise ValueError("a peak is a hash of 32 bytes")

    def grow(self, leaves: Iterable[Digest]) -> tuple[Frontier, list[Node]]:
        """The frontier with these leaf hashes appended in order, and the nodes that they complete, to store.

        Raises:
            ValueError: a leaf that is no hash.
        """
        peaks, size = list(self.peaks), self.size
        nodes: list[Node] = []
        for leaf in leaves:
            if len(leaf) != HASH_BYTES:
                raise ValueError(f"a leaf hash has {HASH_BYTES} bytes; got {len(leaf)}")
            level, index, computed = 0, size, leaf
            nodes.append(Node(0, index, leaf))
            while index & 1:
                level, index, computed = level + 1, index >> 1, node_hash(peaks.pop(), computed)
                nodes.append(Node(level, index, computed))
            peaks.append(computed)
            size += 1
        return Frontier(size, tuple(peaks)), nodes

    def append(self, leaf: Digest) -> Frontier:
        """The frontier with one more leaf hash."""
        return self.extend((leaf,))

    def extend(self, leaves: Iterable[Digest]) -> Frontier:
        """The frontier with these leaf hashes appended in order."""
        return self.grow(leaves)[0]

    def root(self) -> Digest:
        """Merkle tree hash of the leaves so far."""
        if not self.peaks:
            return EMPTY_ROOT
        computed = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            computed = node_hash(peak, computed)
        return computed

    def to_bytes(self) -> bytes:
        """Size as 8 bytes, big-endian, then the peaks, largest first."""
        return self.size.to_bytes(8, "big") + b"".join(self.peaks)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """The frontier that `to_bytes` wrote.

        Raises:
            ValueError: not such bytes.
        """
        if len(data) < 8 or len(data) % HASH_BYTES != 8:
            raise ValueError(f"a frontier has 8 bytes and whole hashes; got {len(data)} bytes")
        peaks = tuple(Digest(data[at : at + HASH_BYTES]) for at in range(8, len(data), HASH_BYTES))
        return cls(int.from_bytes(data[:8], "big"), peaks)


def _sides(position: int, last: int, given: int) -> list[bool]:
    """For each sibling on the way from node `position` of a level to the root: does it stand on the left?

    Args:
        position: index of the node in its level.
        last: index of the right-most node of that level.
        given: hashes that the proof has.

    Raises:
        MerkleError: the way needs another number of hashes than given.
    """
    sides: list[bool] = []
    while last:
        # A right-most left child has no sibling: it is lifted unchanged.
        if position & 1 or position != last:
            sides.append(bool(position & 1))
        position >>= 1
        last >>= 1
    if len(sides) != given:
        raise MerkleError(f"a Merkle path of {given} hashes where {len(sides)} are needed")
    return sides


def _split(count: int) -> int:
    """Largest power of two below `count` (RFC 6962's k)."""
    return 1 << ((count - 1).bit_length() - 1)


def _range_root(nodes: NodeSource, start: int, end: int) -> Digest:
    """MTH(D[start:end]) for a range that the recursion of RFC 6962 reaches, so that `start` is aligned."""
    count = end - start
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return nodes(level, start >> level)
    middle = start + _split(count)
    return node_hash(_range_root(nodes, start, middle), _range_root(nodes, middle, end))


def _check_hashes(hashes: Iterable[bytes]) -> None:
    # Other lengths would let two different pairs of children have one concatenation.
    if any(len(item) != HASH_BYTES for item in hashes):
        raise MerkleError("a hash in a Merkle proof is 32 bytes")


def _check_root(what: str, computed: Digest, expected: Digest) -> None:
    if computed != expected:
        raise MerkleError(f"{what} proof leads to root {computed.hex()}, expected {expected.hex()}")
