"""Subjects, quantiles and the leaf that observations of one record give."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.consensus.errors import ObservationError
from nsllm.consensus.observation import (
    MISSING,
    Subject,
    agree,
    lower_median,
    pack_subjects,
    quantile,
    unpack_digests,
    unpack_subjects,
)

ppm = st.integers(0, 1_000_000)
SUBJECT = Subject(b"\x01" * 32, b"\x02" * 20, b"\x03" * 32)
RUBRIC = b"\x04" * 32


@given(values=st.lists(ppm, min_size=1, max_size=31))
def test_the_lower_median_is_one_of_the_values_and_halves_them(values):
    median = lower_median(values)
    assert median in values
    assert sum(v < median for v in values) * 2 < len(values)
    assert sum(v > median for v in values) * 2 <= len(values)
    assert median == lower_median(values[::-1])


@given(values=st.lists(ppm, min_size=1, max_size=31), quarter=st.integers(1, 3))
def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed(values, quarter):
    """The definition of Hyndman and Fan's type 1: the inverse of the empirical distribution."""
    share = Fraction(quarter, 4)
    least = min(v for v in values if Fraction(sum(w <= v for w in values), len(values)) >= share)
    assert quantile(values, quarter) == least


@pytest.mark.parametrize(
    ("count", "quartiles"),
    [(1, (1, 1, 1)), (3, (1, 2, 3)), (4, (1, 2, 3)), (5, (2, 3, 4)), (7, (2, 4, 6)), (8, (2, 4, 6))],
)
def test_quartiles_of_so_many(count, quartiles):
    assert tuple(quantile(range(1, count + 1), quarter) for quarter in (1, 2, 3)) == quartiles


def test_no_values():
    with pytest.raises(ValueError, match="no values"):
        lower_median([])


def test_agreement_is_the_same_in_any_order():
    rows = [(bytes([i] * 20), (10 * i, 100 - i)) for i in (3, 1, 2)]
    leaf = agree(SUBJECT, RUBRIC, ("a", "b"), rows)
    assert leaf == agree(SUBJECT, RUBRIC, ("a", "b"), rows[::-1])
    assert [(s.name, s.ppm) for s in leaf.scores] == [("a", 20), ("b", 98)]
    assert [(q.lower_ppm, q.upper_ppm) for q in leaf.quartiles] == [(10, 30), (97, 99)]
    assert leaf.observers == tuple(bytes([i] * 20) for i in (1, 2, 3))
    assert (leaf.record, leaf.generator, leaf.request_key, leaf.rubric) == (
        *(SUBJECT.record, SUBJECT.generator, SUBJECT.request_key),
        RUBRIC,
    )


def test_a_dimension_that_most_left_out_has_no_score():
    row = [(1, MISSING), (2, 5), (3, MISSING)]
    leaf = agree(SUBJECT, RUBRIC, ("a", "b"), [(bytes([i] * 20), ppm) for i, ppm in enumerate(row)])
    assert [(score.name, score.ppm) for score in leaf.scores] == [("a", 2)]
    assert len(leaf.quartiles) == 1
    row[0] = (1, 7)
    leaf = agree(SUBJECT, RUBRIC, ("a", "b"), [(bytes([i] * 20), ppm) for i, ppm in enumerate(row)])
    assert [(score.name, score.ppm) for score in leaf.scores] == [("a", 2), ("b", 7)]
    assert (leaf.quartiles[1].lower_ppm, leaf.quartiles[1].upper_ppm) == (5, 7)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 rows of 0"),
        ([(b"\x01" * 20, (MISSING, MISSING))], "no dimension was measured"),
        ([(b"\x01" * 20, (1, 2)), (b"\x01" * 20, (1, 2))], "2 rows of 1"),
        ([(b"\x01" * 20, (1, 2)), (b"\x02" * 20, (1,))], "not 2 integers"),
    ],
)
def test_rows_that_give_no_leaf(rows, message):
    with pytest.raises(ObservationError, match=message):
        agree(SUBJECT, RUBRIC, ("a", "b"), rows)


def test_columns_come_back_as_they_went_in():
    other = Subject(b"\x05" * 32, b"\x06" * 20, b"\x07" * 32)
    assert unpack_subjects(pack_subjects([SUBJECT, other])) == (SUBJECT, other)
    assert unpack_digests(SUBJECT.record + other.record) == (SUBJECT.record, other.record)
    with pytest.raises(ObservationError, match="not a multiple of 84"):
        unpack_subjects(pack_subjects([SUBJECT])[:-1])
    with pytest.raises(ObservationError, match="not a multiple of 32"):
        unpack_digests(bytes(33))
