"""A trace becomes a score: what numbers explain passes, what they do not is worth nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.governance.computation import RULES, computation_ppm, unexplained
from nsllm.governance.ports import Trace

HONEST = Trace(60, mean_strain=0.0, worst_strain=0.0, surprise=3.0, variance=40.0)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"exact": True}, True),
        ({"exact": True, "worst_strain": 0.0625, "mean_strain": 0.001}, True),
        ({"exact": True, "worst_strain": 0.125, "mean_strain": 0.002}, False),
        ({"mean_strain": 0.06, "worst_strain": 1.0}, True),
        ({"mean_strain": 0.4, "worst_strain": 1.0}, False),
        ({"mean_strain": 0.06, "worst_strain": 4.0}, False),
        ({"surprise": 26.0}, True),
        ({"surprise": 90.0}, False),
        ({"surprise": -90.0}, False),
        ({"mean_strain": math.nan}, False),
        ({"surprise": math.nan}, False),
        ({"fault": "text"}, False),
        ({"tokens": 0}, False),
    ],
)
def test_what_passes(changes, passes):
    assert (computation_ppm(replace(HONEST, **changes)) >= 500_000) is passes


def test_what_cannot_be_is_worth_nothing_at_all():
    assert computation_ppm(replace(HONEST, fault="prompt")) == 0


@given(st.floats(0, 16), st.floats(0, 16), st.floats(-1e3, 1e3), st.floats(0, 1e3), st.booleans())
def test_more_strain_never_helps(mean, worst, surprise, variance, exact):
    one = Trace(60, mean_strain=mean, worst_strain=worst, surprise=surprise, variance=variance, exact=exact)
    score = computation_ppm(one)
    assert 0 <= score <= 1_000_000
    assert computation_ppm(replace(one, mean_strain=mean + 0.1)) <= score
    assert computation_ppm(replace(one, worst_strain=worst + 0.1)) <= score
    assert computation_ppm(replace(one, surprise=surprise * 2)) <= score


def test_chance_explains_some_surprise():
    assert unexplained(HONEST) == 0
    assert unexplained(replace(HONEST, surprise=60 + 4 * math.sqrt(40))) == pytest.approx(1)


def test_the_digest_covers_every_rule():
    others = {"exact": RULES.near, "near": RULES.exact, "surprise": RULES.near.mean_strain, "sigmas": 9}
    assert set(others) == set(RULES.__struct_fields__)
    changed = {msgspec.structs.replace(RULES, **{name: other}).digest() for name, other in others.items()}
    assert len({RULES.digest(), *changed}) == 5
