"""All of an EVM state: the trie nodes and the code that a state root reaches, in one fixed order. Pure.

Source: Ethereum yellow paper, section 4.1 (accounts) and appendix D (tries).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nsllm.crypto import keccak256
from nsllm.governance.merkle_patricia import EMPTY_TRIE_ROOT, NodeFetch, children
from nsllm.governance.rlp import decode
from nsllm.ids import Digest

NO_CODE: Final = keccak256(b"")


def state_values(root: Digest, fetch: NodeFetch) -> Iterator[bytes]:
    """Every node and every code of the state, each once, depth first: what stands in a store under its keccak-256.

    Args:
        root: the state's.
        fetch: reads the store.

    Raises:
        KeyError: of `fetch`: the store is not complete.
        ValueError: a node is not one.
    """
    seen: set[Digest] = set()
    accounts: list[bytes] = []
    yield from _nodes(root, fetch, seen, accounts)
    for account in accounts:
        fields = decode(account)
        if not isinstance(fields, list) or len(fields) != 4:
            raise ValueError("an account has four fields")
        storage, code = fields[2], fields[3]
        if not isinstance(storage, bytes) or not isinstance(code, bytes):
            raise ValueError("an account's storage root and code hash are bytes")  # noqa: TRY004 - see `_value`
        yield from _nodes(Digest(storage), fetch, seen, [])
        if code != NO_CODE and code not in seen:
            seen.add(Digest(code))
            yield fetch(Digest(code))


def _nodes(root: Digest, fetch: NodeFetch, seen: set[Digest], leaves: list[bytes]) -> Iterator[bytes]:
    """Nodes of one trie that were not seen yet; the values of its leaves are added to `leaves`."""
    waiting = [root] if root != EMPTY_TRIE_ROOT else []
    while waiting:
        digest = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        node = fetch(digest)
        yield node
        below, values = children(node)
        waiting.extend(reversed(below))
        leaves.extend(values)
