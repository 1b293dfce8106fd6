"""Eviction: which records leave a store that is full. Pure.

First those that placement has given to other holders since they came, then the least recently used. Records that came
a moment ago stay: whoever pushed them may still be looking for their other holders.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SETTLE_MS: Final = 15 * 60 * 1000
"""Age from which a record may be evicted: a keeper looks after it for 10 minutes at most."""
CANDIDATES: Final = 4096
"""Records that are looked at for one eviction, the least recently used."""
SLACK: Final = 64
"""An eviction frees at least this part of the limit, so that it is not due again at the next record."""
ROW_BYTES: Final = 1024
"""What a record takes beside its encoded form: embedding, keys and their index, the page's share."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """A record that may be evicted."""

    row: int
    size_bytes: int
    ours: bool
    """Placement names this peer as a holder."""


def victims(shelved: Iterable[Shelved], needed_bytes: int) -> tuple[int, ...]:
    """Rows to delete for at least `needed_bytes`; all of them if they do not suffice.

    Args:
        shelved: the least recently used first.
        needed_bytes: none are deleted for 0 or less.
    """
    chosen: list[int] = []
    for one in sorted(shelved, key=lambda one: one.ours):  # a stable sort: the order within both kinds stays
        if needed_bytes <= 0:
            break
        chosen.append(one.row)
        needed_bytes -= one.size_bytes
    return tuple(chosen)
