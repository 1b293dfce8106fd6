"""Coherence and relevance of an answer: features through logistic gates to integer ppm.

Perplexity alone rewards repetition, so fluency (mean log-probability) stands beside the share of distinct word
triples and the gain over an unconditioned prompt; the geometric mean lets no gate make up for another.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.governance.features import MICRO, AnswerFeatures
from nsllm.ids import PPM_ONE, Digest, Ppm

STRETCH_WORDS: Final = 100
"""Words that repetition is looked for in at a time; a shorter last stretch counts from half of it."""
MAX_WORDS: Final = 20_000
"""Words of an answer that repetition looks at; bounds the work on a hostile text."""


class Gate(Value, frozen=True, kw_only=True):
    """Logistic gate: 0.5 at `centre`, steeper for a smaller `scale`; both in millionths of the feature's unit."""

    centre: Annotated[int, Meta(ge=-30 * MICRO, le=30 * MICRO)]
    scale: Annotated[int, Meta(ge=1, le=30 * MICRO)]

    def open(self, feature_micro: int) -> float:
        """How far the gate opens, in (0, 1)."""
        argument = (feature_micro - self.centre) / self.scale
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, argument))))


class CoherenceRules(Value, frozen=True, kw_only=True):
    """The gates; their digest is pinned in the rubric as rule set `coherence`."""

    fluency: Gate
    """On the mean log-probability a token, nats."""
    gain: Gate
    """On the gain over the unconditioned prompt, nats a token."""
    distinct: Gate
    """On the share of distinct word triples."""
    relevance: Gate
    """On the cosine of question and answer."""
    support: Gate
    """On the mean, over the answer's sentences, of the highest cosine to one of the evidence's."""

    def digest(self) -> Digest:
        """What the rubric pins."""
        return canonical.digest("coherence-rules", b"", self)


RULES: Final = CoherenceRules(
    fluency=Gate(centre=-3_000_000, scale=400_000),
    gain=Gate(centre=100_000, scale=150_000),
    distinct=Gate(centre=420_000, scale=60_000),
    relevance=Gate(centre=300_000, scale=100_000),
    support=Gate(centre=420_000, scale=60_000),
)
"""Set on features of 420 of SmolLM2's benign answers and of spoilt ones (`benchmarks/score_separation.py`).

Medians and, in brackets, the benign answers' 5 % quantiles: log-probability -0.73 (-1.04), shuffled -5.8, random words
-7.8; gain 0.42 (0.21), off topic -0.12; distinct triples 0.93 (0.46), loops 0.19; cosine 0.73 (0.29), off topic 0.01.
The fluency gate stands further out than that, for answers of other models and of people. `support`
stands between answers that rest on what they cite (median 0.63, 5 % quantile 0.46) and passages drawn at random (0.14,
95 % quantile 0.32); passages of the same topic are at 0.39 (`benchmarks/support_separation.py`).
"""


def distinct3_micro(text: str) -> int:
    """Share of distinct word triples, in millionths; 1,000,000 for fewer than four words.

    The mean over stretches of 100 words: long texts come back to their words without being loops.

    >>> distinct3_micro("a b c a b c a b c")
    428571
    """
    words = [match.group().lower() for match, _ in zip(re.finditer(r"\w+", text), range(MAX_WORDS), strict=False)]
    starts = range(0, max(1, len(words) - STRETCH_WORDS // 2), STRETCH_WORDS)
    return sum(_distinct(words[start : start + STRETCH_WORDS]) for start in starts) // len(starts)


def _distinct(words: list[str]) -> int:
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return MICRO if len(triples) < 2 else len(set(triples)) * MICRO // len(triples)


def coherence_ppm(answer: str, features: AnswerFeatures, rules: CoherenceRules = RULES) -> Ppm:
    """Fluency, repetition and gain as one number: is this a text that answers, or noise?"""
    if features.tokens == 0:
        return Ppm(0)
    fluency = rules.fluency.open(features.logprob_micro)
    gain = rules.gain.open(features.gain_micro)
    distinct = rules.distinct.open(distinct3_micro(answer))
    return _ppm(float((fluency * distinct * math.sqrt(gain)) ** (1 / 2.5)))


def relevance_ppm(features: AnswerFeatures, rules: CoherenceRules = RULES) -> Ppm:
    """Does the answer speak of what was asked?"""
    return Ppm(0) if features.tokens == 0 else _ppm(rules.relevance.open(features.relevance_cosine_ppm))


def support_ppm(features: AnswerFeatures, rules: CoherenceRules = RULES) -> Ppm | None:
    """Does the evidence cited speak of what the answer says? None without evidence."""
    if features.support_cosine_ppm is None:
        return None
    return _ppm(rules.support.open(features.support_cosine_ppm))


def _ppm(value: float) -> Ppm:
    return Ppm(min(PPM_ONE, max(0, round(value * PPM_ONE))))
