"""Placement: the public rule that cuts keys and embeddings into shards and names the holders of each shard.

Keys: the first eight bytes of the request key modulo the number of shards. Embeddings: the signs of their products
with public hyperplanes of +1 and -1, drawn from SHA-256, so that near questions fall into the same or a neighbouring
cell. Holders: rendezvous (highest random weight) hashing over members with the data role, so that a member that comes
or goes moves only its own share.

Source: Thaler and Ravishankar 1998 (rendezvous hashing); Charikar 2002 (sign of random projections). Pure.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from nsllm import canonical
from nsllm.ids import Address, Digest, NetworkId
from nsllm.record import EMBEDDING_DIMENSIONS, Record

Space = Literal["key", "embedding", "passage"]
"""Where shards lie: request keys, embeddings of questions, embeddings of document chunks."""
EmbeddingSpace = Literal["embedding", "passage"]


PASSAGE_SHARDS: Final = 16
"""Cells of document chunks. A question and the passage that answers it are farther apart (cosine 0.69 at the median)
than two like questions: of 500 questions of BoolQ, 8 probes found the cell of the own passage for 87 % with 16 cells,
for 56 % with 64."""


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One cell of a space."""

    space: Space
    number: int

    def provider_key(self, network: NetworkId) -> Digest:
        """The key under which holders announce the shard in the DHT."""
        return canonical.digest("shard", network, f"{self.space}/{self.number}".encode())


def key_shard(request_key: Digest, shards: int) -> Shard:
    """Shard of an exact-match key."""
    return Shard("key", int.from_bytes(request_key[:8], "big") % shards)


def embedding_shard(embedding: bytes, shards: int, space: EmbeddingSpace = "embedding") -> Shard:
    """Shard of a quantized embedding (384 signed bytes): its cell, modulo the shards."""
    return Shard(space, cell(embedding, _bits(shards)) % shards)


def passage_shard(embedding: bytes, shards: int) -> Shard:
    """Shard of a document chunk, in a network whose records have so many shards."""
    return embedding_shard(embedding, min(shards, PASSAGE_SHARDS), "passage")


def near_passage_shards(embedding: bytes, shards: int, probes: int) -> tuple[Shard, ...]:
    """Shards where chunks near a question may be, the likeliest first."""
    return near_shards(embedding, min(shards, PASSAGE_SHARDS), probes, "passage")


def near_shards(embedding: bytes, shards: int, probes: int, space: EmbeddingSpace = "embedding") -> tuple[Shard, ...]:
    """Shards where neighbours of an embedding may be, the likeliest first: its own, then across the nearest planes.

    Multi-probe in the manner of Lv et al. 2007: one plane is crossed, or two, those with the smallest products first.
    """
    products = _products(embedding, _bits(shards))
    own = _cell(products)
    costs = [(abs(product), 1 << len(products) - 1 - at) for at, product in enumerate(products)]
    pairs = ((one[0] + other[0], one[1] | other[1]) for one, other in combinations(costs, 2))
    crossed = heapq.nsmallest(probes, chain(costs, pairs))
    return tuple(dict.fromkeys(Shard(space, (own ^ bits) % shards) for _, bits in [(0, 0), *crossed]))[:probes]


def cell(embedding: bytes, bits: int) -> int:
    """Coarse cell of an embedding: sign bits over the first public hyperplanes."""
    return _cell(_products(embedding, bits))


def _bits(shards: int) -> int:
    return max(1, (shards - 1).bit_length())


def _products(embedding: bytes, bits: int) -> tuple[int, ...]:
    return tuple((_planes(bits) @ np.frombuffer(embedding, np.int8).astype(np.int32)).tolist())


def _cell(products: tuple[int, ...]) -> int:
    found = 0
    for product in products:
        found = found << 1 | (product >= 0)
    return found


def shards_of(record: Record, request_key: Digest, shards: int) -> tuple[Shard, Shard]:
    """Both shards whose holders keep a record."""
    return key_shard(request_key, shards), embedding_shard(record.embedding, shards)


def holders(network: NetworkId, shard: Shard, holding: tuple[Address, ...], count: int) -> tuple[Address, ...]:
    """The first `count` members in the order of `shard`, the heaviest first; all of `holding` if there are fewer.

    The order of two members depends on nobody else, so the first ones are the same whatever `count` is.

    Args:
        network: of the members.
        shard: of any space.
        holding: members with the data role (`RegistryState.holding`).
        count: how many hold a shard, or also how many stand in line behind them.
    """
    salt = network + f"{shard.space}/{shard.number}/".encode()
    return _heaviest(salt, holding, count)


@lru_cache(maxsize=256)
def _heaviest(salt: bytes, addresses: tuple[Address, ...], count: int) -> tuple[Address, ...]:
    """The `count` addresses with the highest digest under `salt`; remembered, since all shards are asked for again."""
    weighted = ((hashlib.sha256(salt + address).digest(), address) for address in addresses)
    return tuple(address for _, address in heapq.nlargest(count, weighted))


@lru_cache(maxsize=32)
def _planes(count: int) -> NDArray[np.int32]:
    """Of +1 and -1, (planes, dimensions): sums of products are exact."""
    return np.array([[1 if up else -1 for up in _plane(number)] for number in range(count)], np.int32)


def _plane(number: int) -> tuple[bool, ...]:
    bits = b"".join(hashlib.sha256(f"nsllm/plane/{number}/{i}".encode()).digest() for i in range(2))
    return tuple(bool(bits[i // 8] >> (i % 8) & 1) for i in range(EMBEDDING_DIMENSIONS))
