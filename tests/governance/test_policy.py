"""Weights apply at use; a dimension that is missing takes no part; one below its floor makes a record worthless."""

from __future__ import annotations

import msgspec
import pytest

from nsllm.consensus.observation import DimensionScore, Quartiles, ScoreLeaf
from nsllm.governance.defaults import default_policy
from nsllm.governance.errors import PolicyError
from nsllm.ids import Digest

POLICY = default_policy(Digest(b"s" * 32), Digest(b"e" * 32))


def leaf(**scores):
    return ScoreLeaf(
        record=bytes(32),
        generator=bytes(20),
        request_key=bytes(32),
        rubric=POLICY.rubric.digest(),
        scores=tuple(DimensionScore(name=name, ppm=ppm) for name, ppm in scores.items()),
        quartiles=tuple(Quartiles(lower_ppm=0, upper_ppm=0) for _ in scores),
        observers=(bytes(20),),
    )


def test_a_missing_dimension_takes_no_part():
    without = POLICY.hybrid_ppm(leaf(coherence=900_000, relevance=800_000, safety=1_000_000))
    assert without == 880_000
    assert (
        POLICY.hybrid_ppm(leaf(coherence=900_000, computation=500_000, relevance=800_000, safety=1_000_000)) == 880_000
    )
    fifths = tuple(DimensionScore(name=name, ppm=200_000) for name in POLICY.rubric.dimensions)
    policy = msgspec.structs.replace(POLICY, weights=fifths)
    assert policy.hybrid_ppm(leaf(coherence=900_000, relevance=600_000, safety=300_000)) == 600_000


def test_evidence_that_does_not_support_an_answer_costs_a_tenth():
    scores = {"coherence": 900_000, "relevance": 900_000, "safety": 900_000}
    assert [POLICY.hybrid_ppm(leaf(**scores, support=ppm)) for ppm in (900_000, 0)] == [900_000, 810_000]
    assert POLICY.hybrid_ppm(leaf(**scores)) == 900_000


def test_a_dimension_below_its_floor_makes_a_record_worthless():
    assert POLICY.hybrid_ppm(leaf(coherence=900_000, computation=499_999, relevance=800_000, safety=1_000_000)) == 0


def test_only_optional_dimensions_may_be_missing():
    for scores in ({"coherence": 1, "relevance": 1}, {"computation": 1_000_000}, {"relevance": 1, "coherence": 1}):
        with pytest.raises(PolicyError):
            POLICY.hybrid_ppm(leaf(**scores))


def test_floors_and_optional_dimensions_are_the_rubrics():
    with pytest.raises(ValueError, match="floors"):
        msgspec.structs.replace(POLICY, floors=(DimensionScore(name="beauty", ppm=1),)).__post_init__()
    with pytest.raises(ValueError, match="optional"):
        msgspec.structs.replace(POLICY.rubric, optional=("beauty",)).__post_init__()
