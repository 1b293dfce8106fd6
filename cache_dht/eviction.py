"""Eviction: which records leave a store that is full. Pure.

First those that placement has given to other holders since they came, then those of the least value: what a record
saves when it is served, times how much it is asked for, over its size. Records that came a moment ago stay: whoever
pushed them may still be looking for their other holders.

Demand fades: each serving counts half after `HALF_LIFE_MS`. All fade alike, so their order stays as it is while nobody
asks, and a value can stand in an index: it is kept as a logarithm, with the time of each serving added instead of a
fading subtracted (forward decay, Cormode et al. 2009).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nsllm.ids import TimeMs
from nsllm.record import Record

SETTLE_MS: Final = 15 * 60 * 1000
"""Age from which a record may be evicted: a keeper looks after it for 10 minutes at most."""
CANDIDATES: Final = 4096
"""Records that are looked at for one eviction, those of the least value."""
SLACK: Final = 64
"""An eviction frees at least this part of the limit, so that it is not due again at the next record."""
ROW_BYTES: Final = 1024
"""What a record takes beside its encoded form: embedding, keys and their indexes, the page's share."""
HALF_LIFE_MS: Final = 7 * 24 * 60 * 60 * 1000
PROMPT_SHARE: Final = 10
"""Tokens of a prompt that cost as much as one of an answer: an engine reads ten times as fast as it writes."""
CHARS_A_TOKEN: Final = 4
"""Where an upstream server told no tokens."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """A record that may be evicted."""

    row: int
    size_bytes: int
    ours: bool
    """Placement names this peer as a holder."""


def worth(record: Record, size_bytes: int) -> float:
    """Logarithm (base 2) of what one serving saves, in tokens of an answer, for a byte of the store.

    How dear a token is nobody knows but its generator: those of all models count alike.
    """
    answer = len(record.token_ids) or len(record.text) / CHARS_A_TOKEN
    prompt = len(record.prompt_token_ids) or sum(len(m.content) for m in record.request.messages) / CHARS_A_TOKEN
    return math.log2((1 + answer + prompt / PROMPT_SHARE) / size_bytes)


def fresh(worth: float, now_ms: TimeMs) -> float:
    """Value of a record that is asked for the first time: it was, when it was made."""
    return worth + now_ms / HALF_LIFE_MS


def served(value: float, worth: float, now_ms: TimeMs) -> float:
    """Value of a record after one more serving."""
    one, other = max(value, fresh(worth, now_ms)), min(value, fresh(worth, now_ms))
    return one + math.log2(1 + 2 ** (other - one))


def victims(shelved: Iterable[Shelved], needed_bytes: int) -> tuple[int, ...]:
    """Rows to delete for at least `needed_bytes`; all of them if they do not suffice.

    Args:
        shelved: the least valuable first.
        needed_bytes: none are deleted for 0 or less.
    """
    chosen: list[int] = []
    for one in sorted(shelved, key=lambda one: one.ours):  # a stable sort: the order within both kinds stays
        if needed_bytes <= 0:
            break
        chosen.append(one.row)
        needed_bytes -= one.size_bytes
    return tuple(chosen)
