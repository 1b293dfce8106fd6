"""Looking up one key in Ethereum's Merkle Patricia trie. Pure; the same walk proves and verifies.

A proof is the list of nodes that the walk asks for, in that order: the prover records what it fetched, the verifier
hands out the recorded nodes one by one and compares each with the hash that was asked for.

Source: Ethereum yellow paper, appendix D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from nsllm.crypto import keccak256
from nsllm.governance.rlp import Item, decode, encode
from nsllm.ids import Digest

EMPTY_TRIE_ROOT: Final = keccak256(encode(b""))

NodeFetch = Callable[[Digest], bytes]
"""RLP of the trie node with this keccak-256."""


def lookup(root: Digest, key: bytes, fetch: NodeFetch) -> bytes | None:
    """Value under `key`, or None where the trie proves that there is none.

    Args:
        root: keccak-256 of the root node.
        key: full key; state and storage tries use the keccak-256 of the address or slot.
        fetch: called from the root down, once a node that stands under its hash.

    Raises:
        ValueError: a node is not one.
    """
    if root == EMPTY_TRIE_ROOT:
        return None
    rest = [nibble for byte in key for nibble in (byte >> 4, byte & 15)]
    reference: Item = root
    while reference != b"":
        node = _decoded(fetch(_hash(reference))) if isinstance(reference, bytes) else reference
        if not isinstance(node, list) or len(node) not in (2, 17):
            raise ValueError("a trie node is a list of 2 or 17 items")
        if len(node) == 17:
            if not rest:
                return _value(node[16])
            reference = node[rest.pop(0)]
            continue
        leaf, path = _path(node[0])
        if leaf:
            return _value(node[1]) if path == rest else None
        if not path or rest[: len(path)] != path:
            return None
        rest, reference = rest[len(path) :], node[1]
    return None


def prove(root: Digest, key: bytes, fetch: NodeFetch) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Value under `key`, and the nodes that show it, root first."""
    nodes: list[bytes] = []

    def recording(digest: Digest) -> bytes:
        nodes.append(fetch(digest))
        return nodes[-1]

    return lookup(root, key, recording), tuple(nodes)


def verify(root: Digest, key: bytes, nodes: Sequence[bytes]) -> bytes | None:
    """Value that `nodes` prove under `key`; None if they prove that there is none.

    Raises:
        ValueError: a node is missing, not the one that its parent names, malformed, or more than needed.
    """
    unused = list(reversed(nodes))

    def next_node(digest: Digest) -> bytes:
        place = len(nodes) - len(unused)
        if not unused:
            raise ValueError(f"node {place} is missing, {digest.hex()}")
        node = unused.pop()
        found = keccak256(node)
        if found != digest:
            raise ValueError(f"node {place} has hash {found.hex()}, expected {digest.hex()}")
        return node

    value = lookup(root, key, next_node)
    if unused:
        raise ValueError(f"{len(unused)} nodes more than needed")
    return value


@lru_cache(maxsize=1024)
def _decoded(data: bytes) -> Item:
    """A node read, not to be changed; the newest are remembered, since the upper ones stand in every walk."""
    return decode(data)


def children(node: bytes) -> tuple[list[Digest], list[bytes]]:
    """Hashes of the nodes below a node, and the values of leaves in it, both in order; short nodes stand within it.

    Raises:
        ValueError: not a node.
    """
    below: list[Digest] = []
    values: list[bytes] = []
    waiting: list[Item] = [decode(node)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, bytes):
            if item:
                below.append(_hash(item))
            continue
        if len(item) == 17:
            value = _value(item[16])
            if value is not None:
                values.append(value)
            waiting.extend(reversed(item[:16]))
        elif len(item) == 2:
            leaf, _ = _path(item[0])
            if leaf:
                values.append(_value(item[1]) or b"")
            else:
                waiting.append(item[1])
        else:
            raise ValueError("a trie node is a list of 2 or 17 items")
    return below, values


def _hash(reference: bytes) -> Digest:
    if len(reference) != 32:
        raise ValueError(f"a reference to a trie node is a hash of 32 bytes; got {len(reference)}")
    return Digest(reference)


def _value(item: Item) -> bytes | None:
    if not isinstance(item, bytes):
        raise ValueError("a trie value is bytes")  # noqa: TRY004 - what was read is wrong, not the caller
    return item or None


def _path(item: Item) -> tuple[bool, list[int]]:
    """Whether the node is a leaf, and its nibbles (hex-prefix encoding, appendix C)."""
    if not isinstance(item, bytes) or not item:
        raise ValueError("a trie path is bytes")
    nibbles = [nibble for byte in item for nibble in (byte >> 4, byte & 15)]
    flag = nibbles[0]
    if flag > 3 or (not flag & 1 and nibbles[1]):
        raise ValueError("a trie path with an unknown flag")
    return bool(flag & 2), nibbles[1 if flag & 1 else 2 :]
