"""EIP-712 words: how values that a contract must read too are hashed. Pure.

Source: EIP-712, `hashStruct(s) = keccak256(typeHash ‖ encodeData(s))`; an array's word is the hash of its elements'
words, joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from nsllm.crypto import keccak256
from nsllm.ids import Address, Digest


@lru_cache(maxsize=16)
def type_hash(type_text: str) -> Digest:
    """keccak-256 of a type as EIP-712 spells it."""
    return keccak256(type_text.encode())


def word(number: int) -> bytes:
    """A number as an EVM word: 32 bytes, big-endian."""
    return number.to_bytes(32, "big")


def address_word(address: Address) -> bytes:
    """An address as an EVM word."""
    return bytes(12) + address


def addresses_word(addresses: Iterable[Address]) -> Digest:
    """An `address[]` as a word."""
    return keccak256(b"".join(map(address_word, addresses)))
