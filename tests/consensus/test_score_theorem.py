"""The theorem of docs/scores.md: how far b <= f liars and a hostile proposer can move an agreed score.

Range: of any n-f or more rows that a proposer chooses, the lower median lies between two honest ones.
Rank: if all honest rows are in, it lies within ceil(b/2) ranks of the lower median of the honest ones alone.
"""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.consensus.observation import MISSING, Subject, agree
from nsllm.consensus.validators import ValidatorSet

SUBJECT = Subject(bytes(32), bytes(20), bytes(32))
TOP = 1_000_000
ppm = st.integers(0, TOP) | st.just(MISSING)
"""A dimension that is left out orders above all, for the honest and for liars."""
SIZES = range(4, 33)


def faults(n: int) -> int:
    return ValidatorSet(epoch=0, members=tuple(bytes([i] * 20) for i in range(n))).faults


CASES = [(n, b) for n in SIZES for b in range(faults(n) + 1)]


def agreed(values: list[int]) -> int:
    """Through the same code as a block."""
    rows = [(bytes([i] * 20), (value, 1)) for i, value in enumerate(values)]
    scores = {score.name: score.ppm for score in agree(SUBJECT, bytes(32), ("relevance", "safety"), rows).scores}
    return scores.get("relevance", MISSING)


def check_range(honest: list[int], lies: list[int]) -> None:
    assert min(honest) <= agreed([*honest, *lies]) <= max(honest)


def check_rank(honest: list[int], lies: list[int], b: int) -> None:
    ranked = sorted(honest)
    middle, reach = ceil(len(ranked) / 2) - 1, ceil(b / 2)
    low, high = ranked[max(0, middle - reach)], ranked[min(len(ranked) - 1, middle + reach)]
    assert low <= agreed([*honest, *lies]) <= high


@st.composite
def networks(draw: st.DrawFn) -> tuple[int, int, list[int], list[int]]:
    """(n, b, honest rows, lies), with any lies and any honest values."""
    n = draw(st.sampled_from(SIZES))
    b = draw(st.integers(0, faults(n)))
    honest = draw(st.lists(ppm, min_size=n - b, max_size=n - b))
    lies = draw(st.lists(ppm, min_size=b, max_size=b))
    return n, b, honest, lies


@settings(max_examples=400)
@given(network=networks(), data=st.data())
def test_whatever_the_proposer_leaves_out_the_score_lies_between_honest_ones(network, data):
    n, b, honest, lies = network
    enough = n - faults(n)
    shown = data.draw(st.integers(0, b))
    kept = data.draw(st.permutations(honest))[: data.draw(st.integers(max(0, enough - shown), len(honest)))]
    check_range(kept, lies[:shown])


@settings(max_examples=400)
@given(network=networks(), data=st.data())
def test_with_all_honest_rows_in_the_score_is_within_half_the_liars_of_their_median(network, data):
    _, b, honest, lies = network
    check_rank(honest, lies[: data.draw(st.integers(0, b))], b)


@pytest.mark.parametrize(("n", "b"), CASES)
def test_every_size_at_its_worst(n, b):
    """Liars below, above and split beside honest rows that all differ; the proposer drops the lowest or the highest."""
    honest = [1_000 * (i + 1) for i in range(n - b)]
    for below in range(b + 1):
        lies = [0] * below + [TOP] * (b - below)
        check_rank(honest, lies, b)
        spare = n - (n - faults(n))
        for left_out in range(spare + 1):
            check_range(honest[left_out:], lies)
            check_range(honest[: len(honest) - left_out], lies)


@pytest.mark.parametrize("n", SIZES)
def test_the_bounds_are_tight(n):
    """Some lies do move the score by ceil(f/2) ranks; f+1 of them among 2f+1 rows take it out of the honest range."""
    f = faults(n)
    honest = [1_000 * (i + 1) for i in range(n - f)]
    ranks = {honest.index(agreed([*honest, *([lie] * f)])) for lie in (0, TOP)}
    middle = ceil(len(honest) / 2) - 1
    assert max(abs(rank - middle) for rank in ranks) == ceil(f / 2)
    few = [1_000 * (i + 1) for i in range(f)]
    assert agreed([*few, *([TOP] * (f + 1))]) > max(few)
