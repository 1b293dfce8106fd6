"""Sampling parameters do what their names say, and the seed alone decides."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from nsllm.node.engine.sampler import Sampler
from nsllm.record import Sampling

PLAIN = Sampling(temperature_micro=1_000_000, top_p_micro=1_000_000, top_k=0, repetition_penalty_micro=1_000_000)


def sampling(**changes):
    import msgspec

    return msgspec.structs.replace(PLAIN, seed=1, **changes)


def draws(parameters, logits, count=300):
    """First choices under `count` different seeds."""
    import msgspec

    return Counter(
        Sampler(msgspec.structs.replace(parameters, seed=seed), []).choose(logits.clone()) for seed in range(count)
    )


@pytest.fixture
def logits():
    return torch.randn(1000, generator=torch.Generator().manual_seed(5)) * 3


def test_temperature_zero_takes_the_most_likely(logits):
    assert draws(sampling(temperature_micro=0), logits, 3) == {int(logits.argmax()): 3}


def test_same_seed_same_tokens_and_every_bit_of_the_seed_counts(logits):
    def tokens(seed):
        sampler = Sampler(sampling() if seed is None else Sampling(**{**_fields(), "seed": seed}), [])
        return [sampler.choose(logits.clone()) for _ in range(8)]

    seen = {seed: tokens(seed) for seed in (0, 1, -1, 1 + 2**32, 2**63 - 1, -(2**63))}
    assert {seed: tokens(seed) for seed in seen} == seen
    assert len({tuple(row) for row in seen.values()}) == len(seen)


def _fields():
    import msgspec

    return msgspec.structs.asdict(PLAIN)


@pytest.mark.parametrize("top_p", [100_000, 500_000, 900_000, 999_999])
def test_top_p_allows_what_transformers_allows(logits, top_p):
    allowed = TopPLogitsWarper(top_p / 1e6)(None, logits[None].clone())[0].isfinite().nonzero().flatten().tolist()
    assert set(draws(sampling(top_p_micro=top_p), logits)) <= set(allowed)
    if len(allowed) < 10:
        assert set(draws(sampling(top_p_micro=top_p), logits)) == set(allowed)


def test_top_p_looks_beyond_the_first_candidates_of_a_flat_distribution():
    flat = torch.zeros(1000)
    assert max(draws(sampling(top_p_micro=900_000), flat)) > 512
    assert max(draws(sampling(top_p_micro=900_000), flat)) < 900


def test_top_p_zero_still_leaves_one_token(logits):
    assert set(draws(sampling(top_p_micro=0), logits, 5)) == {int(logits.argmax())}


def test_top_k_allows_what_transformers_allows(logits):
    allowed = TopKLogitsWarper(3)(None, logits[None].clone())[0].isfinite().nonzero().flatten().tolist()
    assert set(draws(sampling(top_k=3), logits)) == set(allowed)


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    for parameters in (sampling(), sampling(top_p_micro=999_999), sampling(top_k=3)):
        counts = draws(parameters, logits, 2000)
        assert counts[0] / 2000 == pytest.approx(0.7, abs=0.04)
        assert counts[2] / 2000 == pytest.approx(0.1, abs=0.03)


def test_temperature_sharpens():
    logits = torch.tensor([0.6, 0.4]).log()
    assert draws(sampling(temperature_micro=100_000), logits)[0] > draws(sampling(), logits)[0]


def test_repetition_penalty_is_that_of_transformers(logits):
    prompt = [3, 7, 7, int(logits.argmax())]
    expected = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([prompt]), logits[None].clone())[0]
    sampler = Sampler(sampling(temperature_micro=0, repetition_penalty_micro=5_000_000), prompt)
    first = sampler.choose(logits.clone())
    assert first == int(expected.argmax()) != int(logits.argmax())
    expected = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([[*prompt, first]]), logits[None].clone())[0]
    assert sampler.choose(logits.clone()) == int(expected.argmax())
