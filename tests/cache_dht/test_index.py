"""The semantic index finds what an exact search would find, whatever comes and goes."""

from __future__ import annotations

import numpy as np
import pytest

from nsllm.cache_dht.index import SemanticIndex, cosine
from nsllm.cache_dht.placement import embedding_shard, near_shards
from nsllm.embedding import quantize_embedding


def embeddings(count: int, seed: int = 1) -> list[bytes]:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, 384))
    return [quantize_embedding((row / np.linalg.norm(row)).tolist()) for row in found]


def near(embedding: bytes, noise: float, seed: int = 2) -> bytes:
    vector = np.frombuffer(embedding, np.int8) / 127 + np.random.default_rng(seed).normal(size=384) * noise
    return quantize_embedding((vector / np.linalg.norm(vector)).tolist())


def test_the_nearest_of_thousands_is_found_with_its_exact_cosine() -> None:
    stored = embeddings(5000)
    index = SemanticIndex()
    index.add(enumerate(stored))
    for row in range(0, 5000, 500):
        query = near(stored[row], 0.03, row)
        first, second = index.search(query, 2)
        assert first.row == row
        assert first.cosine == pytest.approx(cosine(query, stored[row]), abs=1e-5)
        assert first.cosine > 0.8 > second.cosine


def test_rows_come_and_go() -> None:
    first, second, third = embeddings(3)
    index = SemanticIndex()
    index.add([(10, first), (20, second)])
    index.add([(20, third), (30, second)])  # 20 is another question now
    assert len(index) == 3
    assert index.search(second, 1)[0].row == 30
    assert index.search(third, 1)[0].row == 20
    index.remove([30, 99])
    index.remove([])
    assert {found.row for found in index.search(second, 9)} == {10, 20}
    index.remove([10, 20])
    assert index.search(first, 3) == ()
    index.add([(40, first)])
    assert index.search(first, 3)[0].row == 40


def test_equal_questions_come_in_the_order_of_their_rows() -> None:
    (one,) = embeddings(1)
    index = SemanticIndex()
    index.add([(7, one), (3, one)])
    assert [found.row for found in index.search(one, 2)] == [3, 7]


def test_probes_reach_more_of_the_near_questions_than_one_shard_does() -> None:
    stored = embeddings(300)
    hits = [0, 0]
    for at, embedding in enumerate(stored):
        query = near(embedding, 0.02, at)
        shard = embedding_shard(embedding, 64)
        probes = near_shards(query, 64, 2)
        assert probes[0] == embedding_shard(query, 64)
        assert len(set(probes)) == 2
        hits[0] += shard == probes[0]
        hits[1] += shard in probes
    assert hits[1] > hits[0] + 15
