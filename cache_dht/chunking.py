"""Chunking: a document's text cut into chunks that an encoder reads whole. Pure and deterministic.

By paragraph: one that fits is never cut. Longer ones are cut after sentences, then between words, and only words that
are longer than a chunk within themselves. A chunk is a stretch of the text as it stands, so that its span can be looked
up; where a paragraph is cut, the next chunk repeats its last sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nsllm.record import MAX_CHUNK_CHARS

MOST_TOKENS: Final = 200
"""Of one chunk: the encoder reads 256, and a prompt has room for a few."""
OVERLAP_TOKENS: Final = 40
"""Of the chunk before that stand in the next one again, at most."""
SLICE_CHARS: Final = 64
"""A word that is longer than a chunk is cut into so many characters."""
SEPARATORS: Final = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n\s*"),  # noqa: RUF001 - the full stops of Chinese and Japanese
    re.compile(r"\s+"),
)
"""What stands between paragraphs, sentences (or lines), words."""

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Tokens of each text, without the special ones around it."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a text: characters from `start` to before `end`."""

    start: int
    end: int
    tokens: int
    level: int = 0
    """0: a whole paragraph; 1: sentences; 2: words; 3: slices of a word."""


def chunks(
    text: str, count: CountTokens, *, most_tokens: int = MOST_TOKENS, overlap_tokens: int = OVERLAP_TOKENS
) -> tuple[Stretch, ...]:
    """Chunks of a text, in its order; none for a text of white space.

    Args:
        text: the whole document.
        count: the encoder's tokenizer.
        most_tokens: of one chunk, by the sum over its parts.
        overlap_tokens: below `most_tokens`.

    >>> text = "One two.\\n\\nThree four. Five six."
    >>> made = chunks(text, lambda texts: [len(each.split()) for each in texts], most_tokens=3, overlap_tokens=0)
    >>> [text[one.start : one.end] for one in made]
    ['One two.', 'Three four.', 'Five six.']
    """
    if not 0 <= overlap_tokens < most_tokens:
        raise ValueError(f"overlap_tokens is {overlap_tokens}, it must be from 0 to below {most_tokens}")
    made: list[Stretch] = []
    held: list[Stretch] = []
    for unit in _units(text, count, most_tokens):
        if held and not _fits([*held, unit], most_tokens):
            made.append(_joined(held))
            held = _tail(held, overlap_tokens) if unit.level else []
            while held and not _fits([*held, unit], most_tokens):
                held = held[1:]
        held.append(unit)
    return (*made, _joined(held)) if held else ()


def _units(text: str, count: CountTokens, most_tokens: int) -> Iterator[Stretch]:
    """What is packed into chunks: paragraphs, and parts of those that are too long."""
    level = 0
    waiting: list[tuple[int, int]] = list(_split(text, 0, len(text), 0))
    ready: list[Stretch] = []
    while waiting:
        counted = count([text[start:end] for start, end in waiting])
        found = [Stretch(*span, tokens, level) for span, tokens in zip(waiting, counted, strict=True)]
        level += 1
        waiting = []
        for unit in found:
            if _fits([unit], most_tokens) or level > len(SEPARATORS):
                ready.append(unit)
            else:
                waiting += _split(text, unit.start, unit.end, level)
    return iter(sorted(ready, key=lambda unit: unit.start))


def _split(text: str, start: int, end: int, level: int) -> Iterator[tuple[int, int]]:
    """Parts of a stretch, without the white space around them; slices of a word at the last level."""
    if level == len(SEPARATORS):
        yield from ((at, min(at + SLICE_CHARS, end)) for at in range(start, end, SLICE_CHARS))
        return
    at = start
    for between in SEPARATORS[level].finditer(text, start, end):
        yield from _stripped(text, at, between.start())
        at = between.end()
    yield from _stripped(text, at, end)


def _stripped(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    part = text[start:end]
    if part.strip():
        yield start + len(part) - len(part.lstrip()), end - (len(part) - len(part.rstrip()))


def _fits(units: Sequence[Stretch], most_tokens: int) -> bool:
    chars = units[-1].end - units[0].start
    return sum(unit.tokens for unit in units) <= most_tokens and chars <= MAX_CHUNK_CHARS


def _tail(units: Sequence[Stretch], overlap_tokens: int) -> list[Stretch]:
    """The last units that the next chunk repeats: never all of them."""
    kept: list[Stretch] = []
    for unit in reversed(units[1:]):
        if sum(one.tokens for one in kept) + unit.tokens > overlap_tokens:
            break
        kept.insert(0, unit)
    return kept


def _joined(units: Sequence[Stretch]) -> Stretch:
    return Stretch(units[0].start, units[-1].end, sum(unit.tokens for unit in units), max(u.level for u in units))
