"""Whether two answers to one question say the same: what stands for "correct" where nobody has a gold label. Pure.

Embeddings hear the topic, words the claims: both count, and numbers or a negation that only one answer has are final.
The limits are measured by `benchmarks/judge_answers.py`. In doubt the answers differ.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from nsllm.cache_dht.wording import Wording, read

SCORE_LIMIT: Final = 0.7
"""Mean of cosine and word overlap from which two answers agree."""
OVERLAP_LIMIT: Final = 0.5
"""Word overlap from which two answers do not contradict each other, where there is no time to embed them."""
SHORT_WORDS: Final = 40
"""Answers up to this length agree in negation as well; longer ones say "not" somewhere."""
PART_CHARS: Final = 2000


def overlap(one: str, other: str) -> float:
    """F1 of the content words of two texts; 0 where numbers or negation differ.

    >>> overlap("It opened in 1937.", "It opened in 1973.")
    0.0
    """
    first, second = read(one[:PART_CHARS]), read(other[:PART_CHARS])
    if first is None or second is None or _contradict(first, second):
        return 0.0
    words, others = Counter([*first.words, *first.numbers]), Counter([*second.words, *second.numbers])
    shared = 2 * (words & others).total()
    return shared / max(1, words.total() + others.total())


def agree(one: str, other: str, cosine: float) -> bool:
    """Whether two answers say the same.

    Args:
        one: an answer.
        other: another answer to the same question.
        cosine: of the two answers' embeddings.
    """
    if one.split() == other.split():
        return True
    shared = overlap(one, other)
    return shared > 0 and (max(0.0, cosine) + shared) / 2 >= SCORE_LIMIT


def compatible(one: str, other: str) -> bool:
    """Whether two answers say nearly the same words: `agree` without embeddings, and stricter on wording."""
    return one.split() == other.split() or overlap(one, other) >= OVERLAP_LIMIT


def _contradict(one: Wording, other: Wording) -> bool:
    numbers, others = set(one.numbers), set(other.numbers)
    if numbers and others and not (numbers <= others or others <= numbers):
        return True
    return max(len(one.words), len(other.words)) <= SHORT_WORDS and one.negated != other.negated
