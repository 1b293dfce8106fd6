"""Blocks as a ledger's file keeps them."""

from __future__ import annotations

import zlib

import pytest

from nsllm.errors import EncodingError
from nsllm.governance.stored_block import SMALL_BYTES, from_stored, to_stored


async def decided_block(net, records: int):
    ledger = await net.open()
    net.observe_all(ledger, *(net.record(str(number)) for number in range(records)))
    return await net.decide(ledger)


async def test_small_blocks_are_compressed_and_large_ones_kept_as_they_are(net, autojump_clock) -> None:
    small, large = await decided_block(net, 1), await decided_block(net, 60)
    assert len(large.encoded) > SMALL_BYTES > len(small.encoded)
    assert from_stored(to_stored(small)) == small
    assert from_stored(to_stored(large)) == large
    assert len(to_stored(small)) < 0.7 * len(small.encoded)
    assert to_stored(large) == large.encoded


async def test_damage_is_told(net, autojump_clock) -> None:
    block = await decided_block(net, 1)
    kept = to_stored(block)
    for position in range(0, len(kept), 7):
        damaged = bytearray(kept)
        damaged[position] ^= 0x10
        with pytest.raises(EncodingError):
            from_stored(bytes(damaged))
    for data in (b"", kept[:-1], kept + b"\0", zlib.compress(bytes(SMALL_BYTES + 1)), zlib.compress(block.encoded * 8)):
        with pytest.raises(EncodingError):
            from_stored(data)
