"""Placement: total, balanced, stable under churn, and near questions share cells."""

from __future__ import annotations

import hashlib
import random

from hypothesis import given
from hypothesis import strategies as st

from nsllm.cache_dht.placement import Shard, embedding_shard, holders, key_shard
from nsllm.consensus.registry import Member, RegistryState
from nsllm.embedding import quantize_embedding
from nsllm.ids import Address, Digest, NetworkId

NETWORK = NetworkId(b"\x07" * 32)


def member(number: int, *roles: str) -> Member:
    return Member(address=Address(hashlib.sha256(bytes([number])).digest()[:20]), peer_id=f"p{number}", roles=roles)


EIGHT = tuple(member(i, "data").address for i in range(8))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 65536))
def test_every_key_has_a_shard(key: bytes, shards: int) -> None:
    assert 0 <= key_shard(Digest(key), shards).number < shards


@given(st.binary(min_size=384, max_size=384), st.integers(1, 1024))
def test_every_embedding_has_a_shard(embedding: bytes, shards: int) -> None:
    assert 0 <= embedding_shard(embedding, shards).number < shards


def test_near_embeddings_mostly_share_a_cell_and_far_ones_mostly_do_not() -> None:
    rng = random.Random(1)

    def unit(values: list[float]) -> bytes:
        norm = sum(x * x for x in values) ** 0.5
        return quantize_embedding([x / norm for x in values])

    near = far = 0
    for _ in range(200):
        base = [rng.gauss(0, 1) for _ in range(384)]
        cell = embedding_shard(unit(base), 64)
        near += embedding_shard(unit([x + 0.02 * rng.gauss(0, 1) for x in base]), 64) == cell
        far += embedding_shard(unit([rng.gauss(0, 1) for _ in range(384)]), 64) == cell
    assert near > 180
    assert far < 20


def test_holders_are_distinct_data_members_and_independent_of_order() -> None:
    shard = Shard("key", 3)
    chosen = holders(NETWORK, shard, EIGHT, 3)
    assert len(set(chosen)) == 3
    assert chosen == holders(NETWORK, shard, EIGHT[::-1], 3)
    with_other = RegistryState.of([*(member(i, "data") for i in range(8)), member(99, "validator")])
    assert chosen == holders(NETWORK, shard, with_other.holding, 3)


def test_a_member_that_leaves_moves_only_its_own_shards() -> None:
    gone = EIGHT[0]
    for number in range(64):
        shard = Shard("key", number)
        before = holders(NETWORK, shard, EIGHT, 2)
        after = holders(NETWORK, shard, EIGHT[1:], 2)
        assert [a for a in before if a != gone] == [a for a in after if a in before]


def test_a_member_that_joins_takes_its_share_and_moves_nothing_else() -> None:
    taken = 0
    for number in range(256):
        shard = Shard("key", number)
        before, after = holders(NETWORK, shard, EIGHT[:7], 2), holders(NETWORK, shard, EIGHT, 2)
        assert [address for address in after if address != EIGHT[7]] == list(before)[: 2 - (EIGHT[7] in after)]
        taken += EIGHT[7] in after
    assert 40 < taken < 90  # two of eight hold each of 256 shards: 64 on average


@given(st.integers(0, 255), st.integers(1, 8), st.integers(1, 8))
def test_the_first_in_line_are_the_same_however_many_are_asked_for(number: int, one: int, other: int) -> None:
    shard, fewer = Shard("embedding", number), min(one, other)
    assert holders(NETWORK, shard, EIGHT, one)[:fewer] == holders(NETWORK, shard, EIGHT, other)[:fewer]


def test_shards_are_spread_evenly() -> None:
    held = [holders(NETWORK, Shard(space, number), EIGHT, 2) for space in ("embedding", "key") for number in range(256)]
    counts = [sum(address in each for each in held) for address in EIGHT]
    assert sum(counts) == 2 * 256 * 2
    assert max(counts) < 2 * min(counts)


def test_provider_keys_differ_by_space_number_and_network() -> None:
    keys = {
        Shard("key", 1).provider_key(NETWORK),
        Shard("key", 2).provider_key(NETWORK),
        Shard("embedding", 1).provider_key(NETWORK),
        Shard("key", 1).provider_key(NetworkId(b"\x08" * 32)),
    }
    assert len(keys) == 4
