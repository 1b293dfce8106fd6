"""Words that an answer must not hold: which tokens may not come next, because they would complete one.

As in vLLM a word is what the tokenizer makes of it, at the beginning of a text and after a space; the same letters in
other tokens pass. Only the answer counts, not its prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

Spelled = tuple[int, ...]


def spellings(words: Sequence[str], tokens: Callable[[str], list[int]]) -> tuple[Spelled, ...]:
    """The token sequences of words; a word has a second one if it is another single token, or as many, after a space.

    Args:
        words: not spaces alone.
        tokens: plain text as tokens, none added.
    """
    found: dict[Spelled, None] = {}
    for word in words:
        plain, spaced = tuple(tokens(word)), tuple(tokens(" " + word.lstrip()))
        found[plain] = None
        if plain and len(spaced) == len(plain) and spaced[0] != plain[0]:
            found[spaced] = None
    return tuple(one for one in found if one)


class BadWords:
    """What one answer must not say next.

    >>> bad = BadWords([(7,), (1, 2)])
    >>> bad.next_tokens()
    [7]
    >>> bad.accept(1)
    >>> bad.next_tokens()
    [7, 2]

    Args:
        sequences: see `spellings`.
    """

    def __init__(self, sequences: Sequence[Spelled]) -> None:
        self._single = [one[0] for one in sequences if len(one) == 1]
        self._longer = [(one[:-1], one[-1]) for one in sequences if len(one) > 1]
        longest = max((len(start) for start, _ in self._longer), default=0)
        self._last = deque[int](maxlen=longest)
        """The end of the answer, as far as it can begin a word."""

    def next_tokens(self) -> list[int]:
        """Tokens that would complete a word now."""
        if not self._longer:
            return self._single
        last = tuple(self._last)
        return [*self._single, *(end for start, end in self._longer if last[-len(start) :] == start)]

    def accept(self, token: int) -> None:
        """This token came."""
        self._last.append(token)
