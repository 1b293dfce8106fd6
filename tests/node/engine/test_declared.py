"""What a generator may declare that nobody asked for: a seed, and nothing else that its model's card does not say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from nsllm.node.engine.declared import is_possible
from nsllm.record import Sampling

CARD = Sampling(
    temperature_micro=200_000,
    top_p_micro=900_000,
    top_k=0,
    min_p_micro=0,
    repetition_penalty_micro=1_100_000,
    presence_penalty_micro=0,
    frequency_penalty_micro=0,
    min_tokens=0,
)
OPEN = Sampling(max_tokens=20)
HONEST = replace(CARD, seed=7, max_tokens=20)


def test_what_an_engine_fills_in_is_possible() -> None:
    assert is_possible(OPEN, HONEST, CARD)
    asked = Sampling(temperature_micro=0, presence_penalty_micro=-500_000, logit_bias=((3, 100_000_000),), stop=("x",))
    declared = replace(
        HONEST, temperature_micro=0, presence_penalty_micro=-500_000, logit_bias=((3, 100_000_000),), stop=("x",)
    )
    assert is_possible(asked, declared, CARD)
    assert is_possible(replace(OPEN, seed=7), HONEST, CARD)
    assert is_possible(OPEN, replace(HONEST, max_tokens=5), CARD), "an answer may be shorter than asked"
    assert is_possible(OPEN, replace(HONEST, seed=-1), CARD), "any seed"


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature_micro": 200_001},
        {"top_p_micro": 1_000_000},
        {"top_k": 1},
        {"min_p_micro": 1},
        {"repetition_penalty_micro": 1_000_000},
        {"presence_penalty_micro": -2_000_000},
        {"frequency_penalty_micro": 1},
        {"min_tokens": 20},
        {"logit_bias": ((5, 1),)},
        {"stop": ("x",)},
        {"stop_token_ids": (5,)},
        {"bad_words": ("x",)},
        {"max_tokens": 21},
        {"max_tokens": None},
        {"seed": None},
        {"temperature_micro": None},
    ],
)
def test_nothing_else_explains_an_answer(changed) -> None:
    assert not is_possible(OPEN, replace(HONEST, **changed), CARD)


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature_micro": 2_000_001},
        {"top_p_micro": 0},
        {"top_p_micro": 1_000_001},
        {"min_p_micro": 1_000_001},
        {"repetition_penalty_micro": 0},
        {"repetition_penalty_micro": 2_000_001},
        {"presence_penalty_micro": -2_000_001},
        {"frequency_penalty_micro": 2_000_001},
        {"logit_bias": ((5, 100_000_001),)},
        {"logit_bias": ((5, 1), (6, -100_000_001))},
    ],
)
def test_who_asks_beyond_what_the_api_takes_asked_no_peer(asked) -> None:
    """A generator may make up a request of its own, too."""
    assert not is_possible(replace(OPEN, **asked), replace(HONEST, **asked), CARD)


@given(st.sets(st.sampled_from(sorted(set(asdict(CARD)) - {"max_tokens", "seed"}))), st.integers(0, 2**63 - 1))
def test_each_parameter_is_the_requests_or_the_cards(named, seed) -> None:
    """Whatever a request sets, to the values of `other`: one declaration is possible, and it is the merged one."""
    other = replace(
        CARD,
        temperature_micro=1_500_000,
        top_p_micro=500_000,
        top_k=9,
        min_p_micro=20_000,
        repetition_penalty_micro=1_900_000,
        presence_penalty_micro=1_000_000,
        frequency_penalty_micro=-1_000_000,
        min_tokens=3,
        logit_bias=((1, 5),),
        stop=("a",),
        stop_token_ids=(4,),
        bad_words=("b",),
        truncate_prompt_tokens=100,
    )
    asked = replace(OPEN, **{name: getattr(other, name) for name in named})
    merged = replace(HONEST, seed=seed, **{name: getattr(other, name) for name in named})
    assert is_possible(asked, merged, CARD)
    for name in set(asdict(CARD)) - {"max_tokens", "seed"}:
        wrong = getattr(CARD if name in named else other, name)
        assert not is_possible(asked, replace(merged, **{name: wrong}), CARD)
