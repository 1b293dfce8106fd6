"""Support: how far the evidence that an answer cites says what the answer says. Pure.

Sentence by sentence: each of the answer's is held against each of the evidence's, and its nearest counts. Whole answers
against whole passages would hear only that both have the same topic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from nsllm.ids import PPM_ONE

MOST_CLAIMS: Final = 16
"""Sentences of an answer or of a passage that are looked at: embedding one takes about 8 ms."""
MOST_PIECES: Final = 64
"""Sentences of all the evidence together."""
LEAST_CHARS: Final = 12
"""What is shorter is no sentence of its own ("Yes.", "No. 5"): it goes with the next one."""
_END: Final = re.compile(r"(?<=[.!?…])\s+|\n+")


def claims(text: str) -> tuple[str, ...]:
    """The sentences of a text, at most `MOST_CLAIMS`; the text itself if it has none.

    >>> claims("Yes. It was built in 1871. Of granite.")
    ('Yes. It was built in 1871. Of granite.',)
    """
    found: list[str] = []
    short = ""
    for part in _END.split(text.strip()):
        short = f"{short} {part.strip()}".strip()
        if len(short) >= LEAST_CHARS:
            found.append(short)
            short = ""
    if short and found:
        found[-1] = f"{found[-1]} {short}"
    return tuple(found[:MOST_CLAIMS]) or (text,)


def evidence_claims(evidence: Sequence[str]) -> tuple[str, ...]:
    """The sentences of all texts that an answer cites, those of the first ones first."""
    return tuple(piece for text in evidence for piece in claims(text))[:MOST_PIECES]


def support_ppm(said: Sequence[Sequence[float]], evidence: Sequence[Sequence[float]]) -> int:
    """Mean over the answer's sentences of the highest cosine to a sentence of the evidence, in ppm.

    Args:
        said: unit vectors of the answer's sentences, at least one.
        evidence: of the evidence's, at least one.
    """
    best = (max(math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in evidence) for one in said)
    return round(PPM_ONE * math.fsum(min(1.0, max(-1.0, value)) for value in best) / len(said))
