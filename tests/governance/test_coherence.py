"""Gates open where answers are good and close where they are noise; what leaves is integer ppm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.governance.coherence import RULES, coherence_ppm, distinct3_micro, relevance_ppm, support_ppm
from nsllm.governance.features import EMPTY_ANSWER, AnswerFeatures

PROSE = "Tides are caused by the gravity of the Moon, which raises the ocean on the side that faces it."


def features(*, logprob=-0.8, gain=0.5, cosine=0.7, support=None, tokens=20):
    return AnswerFeatures(
        tokens=tokens,
        logprob_micro=round(logprob * 1e6),
        gain_micro=round(gain * 1e6),
        relevance_cosine_ppm=round(cosine * 1e6),
        support_cosine_ppm=None if support is None else round(support * 1e6),
        embedding=bytes(384),
    )


@pytest.mark.parametrize(
    ("answer", "given", "low", "high"),
    [
        (PROSE, features(), 900_000, 1_000_000),
        ("Paris.", features(tokens=2, gain=2.8), 900_000, 1_000_000),
        ("4", features(tokens=1, logprob=-1.5), 900_000, 1_000_000),
        (PROSE, features(logprob=-5.8, gain=0.08), 0, 150_000),
        (PROSE, features(logprob=-7.8, gain=-0.2), 0, 50_000),
        ("no, " * 60, features(logprob=-0.2), 0, 300_000),
        (PROSE, features(gain=-0.4), 0, 600_000),
        ("", EMPTY_ANSWER, 0, 0),
    ],
    ids=["prose", "one word", "a number", "shuffled", "random words", "loop", "explained by nothing", "nothing"],
)
def test_coherence_tells_answers_from_noise(answer, given, low, high):
    assert low <= coherence_ppm(answer, given) <= high


def test_relevance_follows_the_cosine_and_support_needs_evidence():
    assert relevance_ppm(features(cosine=0.73)) > 950_000
    assert relevance_ppm(features(cosine=0.01)) < 60_000
    assert support_ppm(features()) is None
    assert support_ppm(features(support=0.8)) > support_ppm(features(support=0.1))


@given(
    st.text(max_size=200),
    st.integers(-30_000_000, 0),
    st.integers(-30_000_000, 30_000_000),
    st.integers(-1_000_000, 1_000_000),
)
def test_whatever_the_features_the_scores_are_integer_ppm(answer, logprob, gain, cosine):
    measured = AnswerFeatures(
        tokens=1, logprob_micro=logprob, gain_micro=gain, relevance_cosine_ppm=cosine, embedding=bytes(384)
    )
    for score in (coherence_ppm(answer, measured), relevance_ppm(measured)):
        assert type(score) is int
        assert 0 <= score <= 1_000_000


@given(st.integers(-10_000_000, -100_000), st.integers(1, 99_999))
def test_a_likelier_answer_is_never_less_coherent(logprob, more):
    worse, better = features(logprob=logprob / 1e6), features(logprob=(logprob + more) / 1e6)
    assert coherence_ppm(PROSE, worse) <= coherence_ppm(PROSE, better)


def test_repetition_ignores_short_texts_and_sees_loops():
    assert distinct3_micro("yes") == 1_000_000
    assert distinct3_micro(PROSE) == 1_000_000
    assert distinct3_micro("one two three " * 30) < 60_000


def test_changing_a_gate_changes_the_digest_that_rubrics_pin():
    changed = type(RULES)(
        fluency=RULES.gain, gain=RULES.gain, distinct=RULES.distinct, relevance=RULES.relevance, support=RULES.support
    )
    assert changed.digest() != RULES.digest()
