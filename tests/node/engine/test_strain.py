"""What the declared sampling gave strains nothing; bent logits strain no more than they were bent; the rest does."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nsllm.node.engine import distribution
from nsllm.node.engine.distribution import MICRO, Limits
from nsllm.node.engine.fast.select import NativeChooser
from nsllm.node.engine.sampler import NoChoiceError, PlainChooser, Sampler
from nsllm.node.engine.strain import BEYOND, LEVELS, strain_of
from nsllm.record import Sampling

DRAWS = st.integers(0, 2**53 - 1)


@pytest.fixture(scope="session")
def native(kernels):
    made = {}
    return lambda vocabulary: made.setdefault(vocabulary, NativeChooser(kernels, vocabulary))


def limits(rng):
    return Limits(
        scale=distribution.scale_of(rng.choice([0, 200_000, 700_000, 1_000_000, 2_000_000])),
        top_k=rng.choice([0, 0, 1, 5, 50]),
        top_p_micro=rng.choice([0, 500_000, 900_000, 999_999, MICRO]),
        min_p_micro=rng.choice([0, 0, 50_000, 500_000]),
    )


def scores(rng, size=400):
    return (np.random.default_rng(rng.getrandbits(32)).standard_normal(size) * rng.choice([0.3, 3])).astype(np.float32)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), DRAWS, st.sampled_from(LEVELS))
@example(372, 0, 0.125)
def test_logits_that_were_bent_strain_no_more_than_they_were_bent(seed, draw, bend):
    rng = random.Random(seed)
    ours, limit = scores(rng), limits(rng)
    noise = np.random.default_rng(rng.getrandbits(32)).uniform(-0.499, 0.499, ours.shape)
    if rng.random() < 0.5:
        noise = np.sign(noise) * 0.499
    token = distribution.choose((ours + bend * noise).astype(np.float32), limit, draw)
    # A token that weighs less than the finest step beside the likeliest is never explained: about one draw in 2^40.
    assume(not limit.scale or distribution.weights(ours, limit.scale)[token] > 0)
    assert strain_of(ours, limit, token, draw).logits <= bend


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), DRAWS)
def test_a_seed_explains_its_own_token_only(seed, draw):
    rng = random.Random(seed)
    ours, limit = scores(rng), limits(rng)
    own = distribution.choose(ours, limit, draw)
    assert strain_of(ours, limit, own, draw).logits == 0
    other = int(np.argsort(ours)[rng.randrange(len(ours) - 1)])
    if other != own:
        assert strain_of(ours, limit, other, draw).logits > 0


def test_far_tokens_are_beyond_all_bending():
    ours = np.array([20.0, 0.0, -1.0], np.float32)
    for temperature in (0, 1_000_000):
        limit = Limits(distribution.scale_of(temperature), 0, 900_000, 0)
        assert strain_of(ours, limit, 1, 2**52).logits == BEYOND
        assert strain_of(ours, limit, 99, 2**52).logits == BEYOND
    cold = Limits(distribution.scale_of(0), 0, MICRO, 0)
    assert strain_of(np.array([1.0, 0.7], np.float32), cold, 1, 0).logits == 0.5


def test_surprise_is_none_on_average():
    rng = random.Random(3)
    for _ in range(4):
        ours, limit = scores(rng, 50), Limits(distribution.scale_of(800_000), 0, 900_000, 0)
        draws = [rng.getrandbits(53) for _ in range(600)]
        found = [strain_of(ours, limit, distribution.choose(ours, limit, draw), draw) for draw in draws]
        assert np.mean([one.surprise for one in found]) == pytest.approx(0, abs=4 * (found[0].variance / 600) ** 0.5)
        assert np.var([one.surprise for one in found]) == pytest.approx(found[0].variance, rel=0.4)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_both_ways_find_the_same_strain(native, seed):
    rng = random.Random(seed)
    size = rng.choice([1, 31, 129, 1000, 5003])
    parameters = Sampling(
        seed=rng.choice([None, rng.getrandbits(60)]),
        temperature_micro=rng.choice([0, 1000, 200_000, 700_000, 1_000_000, 1_000_000_000]),
        top_p_micro=rng.choice([0, 500_000, 900_000, 1_000_000]),
        top_k=rng.choice([0, 0, 1, 5, 50]),
        min_p_micro=rng.choice([None, 50_000, 1_000_000]),
        repetition_penalty_micro=rng.choice([None, 1_300_000]),
        presence_penalty_micro=rng.choice([None, 500_000]),
        logit_bias=((3, 2_000_000),) if rng.random() < 0.3 else (),
        min_tokens=rng.choice([0, 2]),
    )
    prompt = [rng.randrange(size) for _ in range(5)]
    one, two = (Sampler(parameters, prompt, end_token_ids=[0]) for _ in range(2))
    for _ in range(4):
        row = torch.from_numpy(scores(rng, size))
        if rng.random() < 0.2:
            row[::3] = rng.choice([-np.inf, np.nan, np.inf])
        ranks = np.argsort(-row.numpy())
        token = int(ranks[min(rng.choice([0, 0, 1, 2, 30]), size - 1)]) if rng.random() < 0.9 else size + 1
        plain = PlainChooser().trace(one, row, token)
        compiled = native(size).trace(two, row, token)
        assert compiled.logits == plain.logits
        assert compiled.surprise == pytest.approx(plain.surprise, rel=1e-6, abs=1e-6, nan_ok=True)
        assert compiled.variance == pytest.approx(plain.variance, rel=1e-6, abs=1e-4, nan_ok=True)


def test_what_was_chosen_in_a_row_strains_nothing(native):
    parameters = Sampling(seed=7, temperature_micro=900_000, top_p_micro=950_000, repetition_penalty_micro=1_200_000)
    rows = [torch.from_numpy(scores(random.Random(at), 1000)) for at in range(20)]
    for chooser in (PlainChooser(), native(1000)):
        writer, reader = (Sampler(parameters, [1, 2, 3]) for _ in range(2))
        chosen = [writer.choose(row).token for row in rows]
        assert [chooser.trace(reader, row, token).logits for row, token in zip(rows, chosen, strict=True)] == [0] * 20


class Spent:
    """A guide after its answer's end."""

    def mask(self):
        raise NoChoiceError("spent")


def test_a_guide_that_allows_nothing_more_says_so(native):
    for chooser in (PlainChooser(), native(5)):
        with pytest.raises(NoChoiceError):
            chooser.trace(Sampler(Sampling(), [], guide=Spent()), torch.zeros(5), 1)
