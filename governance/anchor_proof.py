"""Proof that the network's contract holds an anchor, against the EVM state root of a certified header.

What is walked: state root → account of the contract (its address follows from the network id, its code is pinned) →
the account's storage root → the anchor's slot → keccak256(log root ‖ header id). Every node is named by its parent's
hash, and none may be left over, so no byte of a proof can change unnoticed.

Imports no EVM: receipts verify offline in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.crypto import keccak256
from nsllm.governance import anchor_contract, merkle_patricia, rlp
from nsllm.governance.errors import ReceiptError
from nsllm.ids import AddressField, Digest, NetworkId, hex0x

STEP: Final = "anchor"

_Node = Annotated[bytes, Meta(min_length=1, max_length=544)]
"""A branch of 16 hashes is 532 bytes long, the longest that an honest trie over fixed keys and short values has."""
_Nodes = Annotated[tuple[_Node, ...], Meta(min_length=1, max_length=64)]


class AnchorProof(Value, frozen=True, kw_only=True):
    """Trie nodes from a state root down to one anchor."""

    contract: AddressField
    account_nodes: _Nodes
    """RLP of the state trie's nodes from the root to the contract's account."""
    storage_nodes: _Nodes
    """RLP of the storage trie's nodes from its root to the anchor's slot."""


def verify_anchor(
    proof: AnchorProof, *, network: NetworkId, state_root: Digest, log_size: int, log_root: Digest, header_id: Digest
) -> None:
    """Pass silently if the contract held exactly this anchor in the state `state_root`.

    Args:
        proof: the nodes.
        network: names the contract.
        state_root: `state_root` of a certified header, at or after the one that followed the anchor.
        log_size: size of the anchored log.
        log_root: its root.
        header_id: id of the header that carried size and root.

    Raises:
        ReceiptError: names the part of the proof that fails, with both values.
    """
    expected = anchor_contract.contract_address(network)
    if proof.contract != expected:
        raise _error("contract", f"{hex0x(proof.contract)} is not the network's contract, which is {hex0x(expected)}")
    account = _walk("account_nodes", state_root, keccak256(proof.contract), proof.account_nodes)
    storage_root = _storage_root(account)
    slot = keccak256(anchor_contract.anchor_slot(log_size))
    stored = _walk("storage_nodes", storage_root, slot, proof.storage_nodes)
    commitment = anchor_contract.anchor_commitment(log_root, header_id)
    # Storage holds integers: RLP without leading zeros.
    if stored != rlp.encode(int.from_bytes(commitment, "big")):
        raise _error("storage_nodes", f"log size {log_size} is anchored to {stored.hex()}, expected {commitment.hex()}")


def _walk(field: str, root: Digest, key: Digest, nodes: Sequence[bytes]) -> bytes:
    try:
        value = merkle_patricia.verify(root, key, nodes)
    except ValueError as error:
        raise _error(field, str(error)) from None
    if value is None:
        raise _error(field, f"nothing stands under {key.hex()} in the trie {root.hex()}")
    return value


def _storage_root(account: bytes) -> Digest:
    try:
        fields = rlp.decode(account)
    except ValueError as error:
        raise _error("account_nodes", f"not an account: {error}") from None
    match fields:
        case [bytes(), bytes(), bytes() as storage_root, bytes() as code_hash] if len(storage_root) == 32:
            if code_hash != anchor_contract.CODE_HASH:
                found, expected = code_hash.hex(), anchor_contract.CODE_HASH.hex()
                raise _error("account_nodes", f"the contract's code has hash {found}, expected {expected}")
            return Digest(storage_root)
        case _:
            raise _error("account_nodes", "an account has nonce, balance, storage root and code hash")


def _error(field: str, message: str) -> ReceiptError:
    return ReceiptError(message, step=STEP, field=f"anchor.{field}")
