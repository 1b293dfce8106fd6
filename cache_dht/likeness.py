"""How like two questions are, from their embeddings and their wordings: one number, a log-odds of equal meaning. Pure.

The cosine alone puts opposites above paraphrases. What tells them apart is what one question says and the other does
not, so unmatched words count beside it. The weights are fitted (`benchmarks/fit_reuse.py`) and shipped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from nsllm.cache_dht.lexicon import lexicon
from nsllm.cache_dht.wording import Wording

FEATURES: Final = ("one", "distance", "distance_log", "alone", "alone_share", "strange", "replaced", "typos", "moved")

STRANGE_DISTANCE: Final = 0.1
"""Questions that do not have the same words are no nearer than this, whatever their embeddings say: that of a record is
its generator's claim, and real questions turn on one word more ("in the NBA", "in a NBA game") oftener than those made
by rule. So they are served only where a neighbourhood has shown that it is safe."""


_BRITISH: Final = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        ("our(?=$|s|ed|ing|ful|ite|able)", "or"),
        ("is(?=$|e|ing|ation|er)", "iz"),
        ("ys(?=$|e|ing)", "yz"),
        ("enc$", "ens"),
        ("[ao]e", "e"),
        ("ll(?=$|ing|ed|er)", "l"),
    )
)


def features(cosine: float, asked: Wording, cached: Wording) -> tuple[float, ...]:
    """What the likeness is a weighted sum of, in the order of `FEATURES`.

    Args:
        cosine: of the two questions' embeddings.
        asked: wording of the question now.
        cached: wording of the one that was answered.
    """
    one, other = Counter(asked.words), Counter(cached.words)
    alone_asked, alone_cached = one - other, other - one
    typos = sum(1 for word in alone_asked if any(misspelt(word, each) for each in alone_cached))
    one_sided = max(0, alone_asked.total() - typos), max(0, alone_cached.total() - typos)
    alone = sum(one_sided)
    shared = (one & other).total()
    common = one & other
    moved = [w for w in asked.words if w in common] != [w for w in cached.words if w in common]
    distance = max(0.0, 1.0 - cosine, STRANGE_DISTANCE if alone else 0.0)
    return (
        1.0,
        distance,
        math.log(max(distance, 1e-3)),
        float(min(alone, 6)),
        alone / max(1, alone + shared),
        float(alone > 0),
        float(min(3, *one_sided)),
        float(min(typos, 3)),
        float(moved),
    )


def misspelt(one: str, other: str) -> bool:
    """Two letters that changed places, or British beside American spelling, in words of six letters and more.

    Another letter, or one that is missing, may make another word: nitrate and nitrite, country and county.

    >>> misspelt("govenrment", "government"), misspelt("nitrate", "nitrite"), misspelt("organis", "organiz")
    (True, False, True)
    """
    if min(len(one), len(other)) < 6 or one[0] != other[0] or not (one.isascii() and other.isascii()):
        return False
    if _american(one) == _american(other):
        return True
    if len(one) != len(other) or frozenset((one, other)) in lexicon().confusable:
        return False
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    return one[at : at + 2] == other[at : at + 2][::-1] and one[at + 2 :] == other[at + 2 :]


def _american(word: str) -> str:
    for pattern, instead in _BRITISH:
        word = pattern.sub(instead, word)
    return word


@dataclass(frozen=True, slots=True)
class Likeness:
    """The fitted weights."""

    weights: tuple[float, ...]
    """As many as `FEATURES`."""

    def of(self, cosine: float, asked: Wording, cached: Wording) -> float:
        """Log-odds that both questions ask for the same."""
        values = features(cosine, asked, cached)
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))
