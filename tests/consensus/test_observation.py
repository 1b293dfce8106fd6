"""Observations and their lower median."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.consensus.errors import ObservationError
from nsllm.consensus.observation import DimensionScore, Observation, agree, lower_median, sign_observation
from nsllm.errors import SignatureError

replace = msgspec.structs.replace
ppm = st.integers(0, 1_000_000)


def observation(validator=bytes(20), scores=(("relevance", 5), ("safety", 7)), **more):
    fields = {"record": b"\x01" * 32, "generator": b"\x02" * 20, "request_key": b"\x03" * 32, "rubric": b"\x04" * 32}
    return Observation(
        **fields | more, validator=validator, scores=tuple(DimensionScore(name=n, ppm=p) for n, p in scores)
    )


def test_a_signature_binds_everything(kit):
    key, other = kit.keys(2)
    signed = sign_observation(key, kit.NETWORK, observation(key.address))
    signed.check(kit.NETWORK)
    with pytest.raises(SignatureError):
        signed.check(bytes(32))
    for name, value in [
        ("record", b"\x09" * 32), ("generator", b"\x09" * 20), ("request_key", b"\x09" * 32), ("rubric", b"\x09" * 32),
        ("validator", other.address), ("scores", (DimensionScore(name="relevance", ppm=6),)),
    ]:  # fmt: skip
        with pytest.raises(SignatureError):
            replace(signed, observation=replace(signed.observation, **{name: value})).check(kit.NETWORK)


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a")])
def test_dimensions_stand_in_order_and_once(kit, names):
    (key,) = kit.keys(1)
    signed = sign_observation(key, kit.NETWORK, observation(key.address, tuple((n, 1) for n in names)))
    with pytest.raises(ObservationError, match="not in ascending order"):
        signed.check(kit.NETWORK)


@given(values=st.lists(ppm, min_size=1, max_size=31))
def test_the_lower_median_is_one_of_the_values_and_halves_them(values):
    median = lower_median(values)
    assert median in values
    assert sum(v < median for v in values) * 2 < len(values)
    assert sum(v > median for v in values) * 2 <= len(values)
    assert median == lower_median(values[::-1])


@given(honest=st.lists(ppm, min_size=3, max_size=15), lies=st.lists(ppm, max_size=7), drop=st.integers(0, 7))
def test_f_liars_cannot_leave_the_honest_range(honest, lies, drop):
    """n-f observations of n > 3f, at most f of them lies, whichever honest ones are left out."""
    f = min(len(lies), (len(honest) - 1) // 2)
    lies = lies[:f]
    n = len(honest) + f
    left_out = min(drop, f, max(0, n - f - (2 * f + 1)))
    kept = honest[left_out:]
    if len(kept) > f:
        assert min(honest) <= lower_median(kept + lies) <= max(honest)


def test_no_values():
    with pytest.raises(ValueError, match="no values"):
        lower_median([])


def test_agreement_is_the_same_in_any_order():
    three = [observation(bytes([i] * 20), (("a", 10 * i), ("b", 100 - i))) for i in (3, 1, 2)]
    leaf = agree(three)
    assert leaf == agree(three[::-1])
    assert [(s.name, s.ppm) for s in leaf.scores] == [("a", 20), ("b", 98)]
    assert leaf.observers == tuple(bytes([i] * 20) for i in (1, 2, 3))


@pytest.mark.parametrize(
    "other",
    [
        {"record": b"\x09" * 32}, {"rubric": b"\x09" * 32}, {"generator": b"\x09" * 20}, {"request_key": b"\x09" * 32},
        {"scores": (("relevance", 5),)}, {"scores": (("relevance", 5), ("other", 7))},
    ],
)  # fmt: skip
def test_what_does_not_belong_together(other):
    with pytest.raises(ObservationError, match="do not belong together"):
        agree([observation(b"\x01" * 20), observation(b"\x02" * 20, **other)])


def test_twice_or_none():
    with pytest.raises(ObservationError, match="twice"):
        agree([observation(), observation(scores=(("relevance", 6), ("safety", 7)))])
    with pytest.raises(ObservationError, match="no observations"):
        agree([])
