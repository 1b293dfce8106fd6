"""Recursive length prefix, Ethereum's encoding, read strictly: each value has one spelling.

Small enough to stand beside the receipt's verifier, which must not load an EVM.

Source: Ethereum yellow paper, appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias, Union

Item: TypeAlias = Union[bytes, list["Item"]]  # noqa: UP007 - `|` cannot take a forward reference
"""Text of bytes, or a list of items."""
Encodable: TypeAlias = Union[bytes, int, Sequence["Encodable"]]  # noqa: UP007
"""What `encode` takes: an integer stands for its big-endian bytes without leading zeros."""

MAX_DEPTH: Final = 24
"""Lists in lists that are followed. A trie node within a trie node is at most a few deep."""


def encode(value: Encodable) -> bytes:
    """RLP of bytes, a non-negative integer, or a sequence of them.

    >>> encode([b"cat", 1024, []]).hex()
    'c883636174820400c0'
    """
    if isinstance(value, int):
        return encode(integer_bytes(value))
    if isinstance(value, bytes):
        if len(value) == 1 and value[0] < 0x80:
            return value
        return _prefix(0x80, len(value)) + value
    body = b"".join(encode(item) for item in value)
    return _prefix(0xC0, len(body)) + body


def decode(data: bytes) -> Item:
    """The one item that `data` spells.

    Raises:
        ValueError: cut short, trailing bytes, a length or byte that has a shorter spelling, or nested too deep.
    """
    item, end = _read(data, 0, len(data), 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes after the RLP item")
    return item


def integer_bytes(number: int) -> bytes:
    """Big-endian bytes without leading zeros; zero is empty."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def integer(item: Item) -> int:
    """The integer that an item spells.

    Raises:
        ValueError: a list, or leading zeros.
    """
    if not isinstance(item, bytes) or item[:1] == b"\0":
        raise ValueError("not an RLP integer")
    return int.from_bytes(item, "big")


def _prefix(base: int, length: int) -> bytes:
    if length < 56:
        return bytes([base + length])
    size = integer_bytes(length)
    return bytes([base + 55 + len(size)]) + size


def _read(data: bytes, start: int, limit: int, depth: int) -> tuple[Item, int]:
    """Item that starts at `start`, and where it ends, at or before `limit`."""
    if start >= limit:
        raise ValueError("RLP ends before its item")
    if depth > MAX_DEPTH:
        raise ValueError(f"RLP nested deeper than {MAX_DEPTH}")
    first = data[start]
    if first < 0x80:
        return data[start : start + 1], start + 1
    body, end = _span(data, start, limit, 0x80 if first < 0xC0 else 0xC0)
    if first < 0xC0:
        if end - body == 1 and data[body] < 0x80:
            raise ValueError("RLP byte with a needless prefix")
        return data[body:end], end
    items: list[Item] = []
    while body < end:
        item, body = _read(data, body, end, depth + 1)
        items.append(item)
    return items, end


def _span(data: bytes, start: int, limit: int, base: int) -> tuple[int, int]:
    """Where the payload after the prefix at `start` begins and ends."""
    length, body = data[start] - base, start + 1
    if length > 55:
        body += length - 55
        size = data[start + 1 : min(body, limit)]
        length = int.from_bytes(size, "big")
        if len(size) != body - start - 1 or size[0] == 0 or length < 56:
            raise ValueError("RLP length that is cut short or not minimal")
    if body + length > limit:
        raise ValueError("RLP item longer than what holds it")
    return body, body + length
