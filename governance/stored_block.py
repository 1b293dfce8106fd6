"""A decided block as a ledger's file keeps it: small ones compressed, since what names their fields is a third of them.

Of a block of many records nearly all is hashes and salts: it is kept as it is. The first byte tells the two apart,
zlib's or that of a MessagePack map.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final

from nsllm import canonical
from nsllm.consensus.block import MAX_BLOCK_BYTES, DecidedBlock
from nsllm.errors import EncodingError

MAX_DECIDED_BYTES: Final = MAX_BLOCK_BYTES + 64 * 1024
SMALL_BYTES: Final = 16 * 1024
_LEVEL: Final = 1
_ZLIB: Final = 0x78


def to_stored(decided: DecidedBlock) -> bytes:
    """What is kept."""
    encoded = decided.encoded
    return _compressed(encoded) if len(encoded) <= SMALL_BYTES else encoded


@lru_cache(maxsize=16)
def _compressed(encoded: bytes) -> bytes:
    """Remembered, because simulated peers that share a process all keep the same blocks."""
    return zlib.compress(encoded, _LEVEL)


def from_stored(data: bytes) -> DecidedBlock:
    """The block that is kept so.

    Raises:
        EncodingError: it is damaged.
    """
    if data[:1] == bytes([_ZLIB]):
        reader = zlib.decompressobj()
        try:
            data = reader.decompress(data, SMALL_BYTES)
        except zlib.error as error:
            raise EncodingError(f"a stored block is damaged: {error}") from None
        if not reader.eof or reader.unused_data:
            raise EncodingError(f"a stored block does not end after {len(data)} bytes")
    return canonical.decode(data, DecidedBlock, limit_bytes=MAX_DECIDED_BYTES)
