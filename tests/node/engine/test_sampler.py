"""Sampling parameters do what their names say, the seed alone decides, and both ways to choose choose the same."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from nsllm.node.engine import distribution
from nsllm.node.engine.fast.select import NativeChooser
from nsllm.node.engine.sampler import Choice, NoChoiceError, PlainChooser, Sampler
from nsllm.record import Sampling

PLAIN = Sampling(temperature_micro=1_000_000, top_p_micro=1_000_000, top_k=0, repetition_penalty_micro=1_000_000)


class FixedGuide:
    """Allows the same tokens every time, until it has accepted one that it does not know."""

    def __init__(self, allowed):
        """The mask ends with the last token that is allowed."""
        self.allowed = allowed
        tokens = np.arange((max(allowed) // 32 + 1) * 32)
        self.bits = np.packbits(np.isin(tokens, allowed), bitorder="little").view(np.uint32)
        self.accepted = []

    def mask(self):
        if set(self.accepted) - set(self.allowed):
            raise NoChoiceError("unknown")
        return self.bits

    def accept(self, token):
        self.accepted.append(token)


def sampling(**changes):
    return msgspec.structs.replace(PLAIN, **{"seed": 1, **changes})


def draws(parameters, logits, count=300):
    """First choices under `count` different seeds."""
    return Counter(
        Sampler(msgspec.structs.replace(parameters, seed=seed), []).choose(logits).token for seed in range(count)
    )


def first(parameters, logits, prompt=(), **more):
    return Sampler(parameters, prompt, **more).choose(torch.as_tensor(logits, dtype=torch.float32))


@pytest.fixture
def logits():
    return torch.randn(1000, generator=torch.Generator().manual_seed(5)) * 3


@pytest.fixture(scope="session")
def native(kernels):
    """Compiled choosers by vocabulary."""
    made = {}

    def chooser(vocabulary):
        return made.setdefault(vocabulary, NativeChooser(kernels, vocabulary))

    return chooser


def test_temperature_zero_takes_the_most_likely_and_of_equals_the_first(logits):
    assert draws(sampling(temperature_micro=0), logits, 3) == {int(logits.argmax()): 3}
    assert first(sampling(temperature_micro=0), [0, 2, 1, 2]).token == 1


def test_same_seed_same_tokens_and_every_bit_of_the_seed_counts(logits):
    def tokens(seed):
        sampler = Sampler(sampling(seed=seed), [])
        return [sampler.choose(logits).token for _ in range(8)]

    seen = {seed: tokens(seed) for seed in (0, 1, -1, 1 + 2**32, 2**63 - 1, -(2**63))}
    assert {seed: tokens(seed) for seed in seen} == seen
    assert len({tuple(row) for row in seen.values()}) == len(seen)


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


def test_top_k_and_top_p_together_are_those_of_transformers(logits):
    scores = TopKLogitsWarper(8)(None, logits[None].clone())
    allowed = TopPLogitsWarper(0.8)(None, scores)[0].isfinite().nonzero().flatten().tolist()
    assert set(draws(sampling(top_k=8, top_p_micro=800_000), logits)) == set(allowed)
    assert 1 < len(allowed) < 8


def test_min_p_allows_what_transformers_allows(logits):
    allowed = MinPLogitsWarper(0.2)(None, logits[None].clone())[0].isfinite().nonzero().flatten().tolist()
    assert set(draws(sampling(min_p_micro=200_000), logits)) == set(allowed)
    assert len(allowed) > 1
    assert set(draws(sampling(min_p_micro=1_000_000_000), logits, 5)) == {int(logits.argmax())}


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    for parameters in (sampling(), sampling(top_p_micro=999_999), sampling(top_k=3)):
        counts = draws(parameters, logits, 2000)
        assert counts[0] / 2000 == pytest.approx(0.7, abs=0.04)
        assert counts[2] / 2000 == pytest.approx(0.1, abs=0.03)


def test_weights_are_probabilities(logits):
    weights = distribution.weights(logits.numpy(), distribution.scale_of(700_000)).astype(np.float64)
    assert weights / weights.sum() == pytest.approx(torch.softmax(logits.double() / 0.7, 0).numpy(), rel=2e-6, abs=1e-9)


def test_temperature_sharpens():
    logits = torch.tensor([0.6, 0.4]).log()
    assert draws(sampling(temperature_micro=100_000), logits)[0] > draws(sampling(), logits)[0]


def test_repetition_penalty_is_that_of_transformers(logits):
    prompt = [3, 7, 7, int(logits.argmax())]
    expected = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([prompt]), logits[None].clone())[0]
    sampler = Sampler(sampling(temperature_micro=0, repetition_penalty_micro=5_000_000), prompt)
    token = sampler.choose(logits).token
    assert token == int(expected.argmax()) != int(logits.argmax())
    expected = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([[*prompt, token]]), logits[None].clone())[0]
    assert sampler.choose(logits).token == int(expected.argmax())


def test_a_repetition_penalty_of_zero_is_none(logits):
    sampler = Sampler(sampling(temperature_micro=0, repetition_penalty_micro=0), [int(logits.argmax())])
    assert sampler.choose(logits).token == int(logits.argmax())


def test_presence_penalty_counts_a_token_of_the_answer_once():
    sampler = Sampler(sampling(temperature_micro=0, presence_penalty_micro=1_000_000), [0, 0, 0])
    logits = torch.tensor([3.0, 2.5, 0.0])
    assert [sampler.choose(logits).token for _ in range(4)] == [0, 1, 0, 0]  # the prompt does not count


def test_frequency_penalty_counts_every_time():
    sampler = Sampler(sampling(temperature_micro=0, frequency_penalty_micro=1_000_000), [0, 0, 0])
    logits = torch.tensor([3.0, 1.5, 0.0])
    assert [sampler.choose(logits).token for _ in range(5)] == [0, 0, 1, 0, 1]


def test_negative_penalties_make_repetition_likelier():
    sampler = Sampler(sampling(temperature_micro=0, presence_penalty_micro=-1_000_000), [])
    rows = torch.tensor([[3.0, 2.0], [2.0, 2.5]])
    assert [sampler.choose(row).token for row in rows] == [0, 0]


def test_logit_bias_is_added_and_unknown_tokens_are_passed_over():
    parameters = sampling(temperature_micro=0, logit_bias=((1, 2_000_000), (99, 1_000_000)))
    assert first(parameters, [3.0, 1.5, 0.0]).token == 1
    assert first(sampling(temperature_micro=0, logit_bias=((0, -100_000_000),)), [3.0, 1.5]).token == 1


def test_no_end_token_before_min_tokens_are_there():
    sampler = Sampler(sampling(temperature_micro=0, min_tokens=2), [], end_token_ids=[0, 2])
    logits = torch.tensor([3.0, 1.5, 2.0])
    assert [sampler.choose(logits).token for _ in range(3)] == [1, 1, 0]


def test_the_last_token_of_a_bad_word_is_not_chosen_after_the_others():
    sampler = Sampler(sampling(temperature_micro=0), [1], bad_words=[(1, 1, 2), (3,)])
    logits = torch.tensor([0.0, 2.0, 1.0, 3.0])
    rows = [logits, logits, torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])]
    assert [sampler.choose(row).token for row in rows] == [1, 1, 1, 1]
    assert sampler.choose(torch.tensor([3.0, 1.0, 2.0, 3.0])).token == 0
    assert sampler.choose(torch.tensor([0.0, 1.0, 2.0, 3.0])).token == 2


def test_a_guide_that_only_leaves_a_bad_word_leaves_no_choice(native):
    for chooser in (PlainChooser(), native(3)):
        kinds = [[(1,)], [(2,)]]
        samplers = [
            Sampler(sampling(min_tokens=5), [], end_token_ids=[1], bad_words=bad, guide=FixedGuide([1]))
            for bad in kinds
        ]
        refused, chosen = chooser.choose_all(samplers, [torch.tensor([3.0, 1.5, 2.0])] * 2)
        assert isinstance(refused, NoChoiceError)
        assert chosen == Choice(1)


def test_a_guide_rules_tokens_out_and_follows_the_choices():
    guide = FixedGuide([1, 2])
    assert first(sampling(temperature_micro=0), [3.0, 1.5, 2.0], guide=guide).token == 2
    assert guide.accepted == [2]


def test_a_guide_that_only_leaves_the_end_ends_the_answer_before_min_tokens():
    assert first(sampling(min_tokens=5), [3.0, 1.5, 2.0], end_token_ids=[1], guide=FixedGuide([1])).token == 1


def test_log_probabilities_are_those_before_all_parameters(logits):
    expected = torch.log_softmax(logits.double(), 0)
    choice = first(sampling(temperature_micro=100_000, top_k=2, logit_bias=((7, 50_000_000),)), logits, top_logprobs=5)
    assert choice.token == 7
    assert choice.logprob == pytest.approx(float(expected[7]), abs=1e-5)
    values, ids = expected.topk(5)
    assert [token for token, _ in choice.top] == ids.tolist()
    assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert first(sampling(), logits, top_logprobs=0).top == ()
    assert first(sampling(), logits).logprob is None
    assert len(first(sampling(), logits, top_logprobs=1000).top) == 20


def test_numbers_that_are_none_leave_no_choice():
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(NoChoiceError):
            first(sampling(), [bad, bad])
    assert first(sampling(), [float("nan"), 1.0, float("-inf")]).token == 1
    assert first(sampling(), [0.0, float("inf"), float("inf")]).token == 1


# The compiled choice


SIZES = (1, 31, 128, 129, 1000, 5003)


def parameters(rng):
    """Any parameters, and any state of a generation."""
    pick = rng.choice
    size = pick(SIZES)
    return size, sampling(
        seed=rng.getrandbits(60),
        temperature_micro=pick([0, 1, 1000, 200_000, 700_000, 1_000_000, 2_000_000, 1_000_000_000]),
        top_p_micro=pick([0, 1, 500_000, 900_000, 999_999, 1_000_000, None]),
        top_k=pick([0, 0, 0, 1, 5, 50, 1_000_000]),
        min_p_micro=pick([None, None, 0, 50_000, 1_000_000, 3_000_000]),
        repetition_penalty_micro=pick([None, 0, 1_000_000, 1_300_000, 500_000]),
        presence_penalty_micro=pick([None, None, 500_000, -2_000_000]),
        frequency_penalty_micro=pick([None, None, 300_000, -100_000]),
        logit_bias=tuple((token, rng.randint(-(10**8), 10**8)) for token in sorted(rng.sample(range(6000), 5)))
        if rng.random() < 0.3
        else (),
        min_tokens=pick([0, 0, 2]),
    )


def numbers(rng, size):
    """Logits: peaked, flat, in steps, or with what is no number."""
    seeded = np.random.default_rng(rng.getrandbits(32))
    kind = rng.randrange(5)
    row = (seeded.standard_normal(size) * rng.choice([0.01, 1, 3, 30])).astype(np.float32)
    if kind == 1:
        row = np.round(row)  # ties
    elif kind == 2:
        row[:] = row[0]
    elif kind == 3:
        row[seeded.random(size) < 0.5] = rng.choice([-np.inf, np.nan, np.inf, 3e38])
    return torch.from_numpy(row)


def make(rng, size, chosen):
    guide = FixedGuide(sorted(rng.sample(range(size), rng.randint(1, size)))) if rng.random() < 0.3 else None
    sampler = Sampler(
        chosen,
        [rng.randrange(size + 3) for _ in range(rng.choice([0, 3, 100]))],
        end_token_ids=[0, size - 1, size + 7],
        bad_words=[(rng.randrange(size + 3),), (1, 2)] if rng.random() < 0.3 else [],
        guide=guide,
        top_logprobs=rng.choice([None, None, 0, 3, 20]),
    )
    return sampler


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_both_ways_choose_the_same_token_with_the_same_probabilities(native, seed):
    rng = random.Random(seed)
    size, chosen = parameters(rng)
    state = rng.getstate()
    plain = make(rng, size, chosen)
    rng.setstate(state)
    fast = make(rng, size, chosen)
    for _ in range(4):
        row = numbers(rng, size)
        before = row.clone()
        (expected,) = PlainChooser().choose_all([plain], [row])
        (got,) = native(size).choose_all([fast], [row])
        assert torch.equal(row.view(torch.int32), before.view(torch.int32))
        if isinstance(expected, NoChoiceError):
            assert isinstance(got, NoChoiceError)
            return
        assert got == expected


@pytest.mark.parametrize(
    "limit", [{}, {"top_k": 192}, {"top_p_micro": 500_000}, {"top_k": 256, "top_p_micro": 500_000}]
)
def test_both_ways_look_up_the_same_token_at_every_border(native, limit):
    """256 tokens that are equally likely, in two blocks: borders are multiples of powers of two, or thirds."""
    scores, half = torch.zeros(256), 2**53 // 256
    for at in range(0, 256, 5):
        for draw in (at * half, at * half - 1, 2**53 * at // 192, 2**53 * at // 192 + 1, 2**53 - 1):
            samplers = [Sampler(sampling(**limit), []) for _ in range(2)]
            for sampler in samplers:
                sampler.draw = lambda draw=draw: max(0, min(draw, 2**53 - 1))
            (expected,) = PlainChooser().choose_all(samplers[:1], [scores])
            assert native(256).choose_all(samplers[1:], [scores]) == [expected]


def test_a_choice_does_not_depend_on_its_neighbours(native):
    rng = random.Random(5)
    size = 5003
    kinds = [(parameters(rng)[1], rng.getrandbits(32), numbers(rng, size)) for _ in range(24)]
    together = [make(random.Random(seed), size, chosen) for chosen, seed, _ in kinds]
    alone = [make(random.Random(seed), size, chosen) for chosen, seed, _ in kinds]
    rows = torch.stack([row for _, _, row in kinds])
    for _ in range(3):
        batch = native(size).choose_all(together, rows)
        single = [native(size).choose_all([one], [row])[0] for one, row in zip(alone, rows, strict=True)]
        assert [one if isinstance(one, Choice) else None for one in batch] == [
            one if isinstance(one, Choice) else None for one in single
        ]
        assert any(isinstance(one, Choice) for one in batch)


def test_a_generation_that_cannot_go_on_leaves_its_neighbours_alone(native, logits):
    for chooser in (PlainChooser(), native(1000)):
        spoilt = FixedGuide([5])
        spoilt.accept(6)
        samplers = [Sampler(sampling(temperature_micro=0), [], guide=guide) for guide in (None, spoilt, None)]
        before, refused, after = chooser.choose_all(samplers, [logits] * 3)
        assert before == after == Choice(int(logits.argmax()))
        assert isinstance(refused, NoChoiceError)


def test_the_definition_looks_up_a_draw_in_whole_numbers():
    """Four tokens that are equally likely: each has a quarter of all numbers of 53 bits, to the last of them."""
    limits = distribution.Limits(scale=np.float32(1), top_k=0, top_p_micro=1_000_000, min_p_micro=0)
    quarter = 2**51
    scores = np.zeros(4, np.float32)
    for draw in (0, quarter - 1, quarter, 2 * quarter - 1, 3 * quarter, 4 * quarter - 1):
        assert distribution.choose(scores, limits, draw) == draw // quarter
