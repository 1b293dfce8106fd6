"""A question as its guards see it: content words, numbers, names, negation, units, what is asked for and in what form.

Pure, and made of word lists (`nsllm.cache_dht.lexicon`): it understands nothing, it only notices what differs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from nsllm.cache_dht.lexicon import Lexicon, lexicon

MAX_CHARS: Final = 2000
"""Longer questions are looked at no further: they are never reused but exactly."""

_TOKEN: Final = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:[.][^\W\d_])*|%|[+*/=<>^-](?=\s*\d)|[+=<>^](?=\s*\w)")
_ORDINAL: Final = re.compile(r"(\d+)(?:st|nd|rd|th|s)\b")
_NAME: Final = re.compile(r"(?<![.!?:-] )(?<!^)\b[A-Z][\w'-]+")
_SIGNS: Final = re.compile(r"[$+<=>^|~#&@\\_]")
_INITIALS: Final = re.compile(r"\b(?!OK\b)[A-Z]{2,}\b")
_SOME: Final = re.compile(r"\ba (few|little|bit|lot)\b")
"""A few is not few."""
_WAYS: Final = frozenset({"from", "to"})
_OPERATORS: Final = frozenset("+*/=<>^-")
_YES_OR_NO: Final = frozenset(
    (
        "is",
        "are",
        "was",
        "were",
        "am",
        "do",
        "does",
        "did",
        "has",
        "have",
        "had",
        "can",
        "could",
        "will",
        "would",
        "may",
    )
)
_ENDINGS: Final = (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""))


@dataclass(frozen=True, slots=True)
class Wording:
    """What was noticed of one question."""

    words: tuple[str, ...]
    """Content words in their order: folded, without endings, synonyms as one."""
    numbers: tuple[str, ...]
    """Numbers, ordinals and operators in their order, as digits."""
    signs: tuple[str, ...]
    """Currencies, operators, pictures: whatever is neither letter, number, space nor punctuation; sorted."""
    initials: frozenset[str]
    """Function words that are written in capitals, among others that are not: IT, WHO."""
    names: frozenset[str]
    """Words that are capitalized in mid-sentence; empty where a question has no such case."""
    negated: bool
    """An odd number of negations."""
    poles: frozenset[str]
    """Kinds of words that turn a question around: first, last, most, before, …"""
    persons: tuple[str, ...]
    """Whom it speaks of, in their order."""
    tenses: frozenset[str]
    """Past, present, future, by its verbs."""
    ways: tuple[str, ...]
    """`from` and `to` in their order, where both stand in it."""
    units: frozenset[str]
    calendar: frozenset[str]
    asks: str
    """Who, when, how many, …; `is` for a yes-or-no question, `do` for all else."""
    forms: frozenset[str]
    """Forms that it asks for: JSON, a list, few words, another language."""
    scripts: frozenset[str]
    """Scripts that its letters belong to."""
    foreign: bool
    """No English function word in five words or more: not the language that these lists know."""
    timely: bool
    """Its answer changes with time."""


@lru_cache(maxsize=8192)
def read(text: str) -> Wording | None:
    """What is noticed of a question; None if it is too long, or empty."""
    if not text.strip() or len(text) > MAX_CHARS:
        return None
    known = lexicon()
    whole = _folded(text).lower()
    lower = _unwrapped(whole, known)
    counted = known.counted.sub(lambda found: found.group().replace("one", "1"), lower)
    plain = _SOME.sub(r"a\1", counted.replace("n't", "nt").replace("'s", "").replace("'", ""))
    tokens = _TOKEN.findall(_ORDINAL.sub(r"\1", plain))
    cased = _cased(text)
    words = [token for token in tokens if _number(token, known) is None]
    asks = _asks(lower, tokens, known)
    units = {known.units[word] for word in words if word in known.units}
    return Wording(
        words=tuple(_content(words, known)),
        numbers=tuple(number for token in tokens if (number := _number(token, known)) is not None),
        signs=_signs(text),
        initials=frozenset(w for w in _INITIALS.findall(text) if w.lower() in known.function) if cased else frozenset(),
        names=frozenset(stem(name.lower()) for name in _NAME.findall(text.strip())) if cased else frozenset(),
        negated=sum(word in known.negations for word in words) % 2 == 1,
        poles=frozenset(known.poles[word] for word in words if word in known.poles),
        persons=tuple(known.persons[t] for t in _TOKEN.findall(known.speaking.sub(" ", plain)) if t in known.persons),
        tenses=frozenset(known.tenses[word] for word in words if word in known.tenses),
        ways=tuple(t for t in tokens if t in _WAYS) if set(tokens) >= _WAYS else (),
        units=frozenset(units - {"year"} if asks == "when" else units),
        calendar=known.calendar & set(words),
        asks=asks,
        forms=frozenset(name for name, pattern in known.forms if pattern.search(whole))
        if known.formed.search(whole)
        else frozenset(),
        scripts=_scripts(text),
        foreign=len(tokens) >= 5 and not known.function & set(tokens),
        timely=timely(text),
    )


@lru_cache(maxsize=8192)
def timely(text: str) -> bool:
    """Whether the answer to a question changes with time."""
    return lexicon().timely.search(_folded(text).lower()) is not None


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A word without its commonest endings; synonyms as one.

    >>> stem("wrote"), stem("nations"), stem("released"), stem("running")
    ('write', 'country', 'release', 'run')
    """
    same = lexicon().same
    if word in same:
        return same[word]
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: len(word) - len(ending)] + instead
            if ending in ("ing", "ed") and len(word) >= 4 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    word = word.removesuffix("e") if len(word) > 3 else word
    return same.get(word) or same.get(word + "e") or word


def _content(words: list[str], known: Lexicon) -> Iterator[str]:
    for word in words:
        if word not in known.function and word not in known.negations:
            yield stem(word)


def _number(token: str, known: Lexicon) -> str | None:
    """The number that a token is, as digits."""
    if token[0].isdigit():
        return token.replace(",", "")
    return token if token in _OPERATORS else known.spelled.get(token)


def _folded(text: str) -> str:
    """Compatibility forms and curly quotes made plain, accents taken off, white space as single blanks."""
    if text.isascii():
        return " ".join(text.split())
    plain = unicodedata.normalize("NFKD", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join("".join(c for c in plain if not unicodedata.combining(c)).split())


def _unwrapped(lower: str, known: Lexicon) -> str:
    """Without polite beginnings and endings."""
    before = None
    while before != lower:
        before = lower
        for pattern in known.wrappers:
            found = pattern.match(lower)
            if found and found.end() < len(lower):
                lower = lower[found.end() :]
        lower = known.ending.sub("", lower) or lower
    return lower


def _cased(text: str) -> bool:
    """Whether upper case says anything: some letters have it, and not most words begin with it."""
    letters = list(filter(str.isalpha, text))
    upper = sum(map(str.isupper, letters))
    titled = sum(word[:1].isupper() for word in text.split())
    return 0 < upper < len(letters) / 2 and titled < max(2, 0.8 * len(text.split()))


def _asks(lower: str, tokens: list[str], known: Lexicon) -> str:
    found = [(match.start(), at, name) for at, (name, p) in enumerate(known.asks) if (match := p.search(lower))]
    if found:
        return min(found)[2]
    return "is" if tokens and tokens[0] in _YES_OR_NO else "do"


def _signs(text: str) -> tuple[str, ...]:
    found = _SIGNS.findall(text)
    if not text.isascii():
        found += (c for c in text if not c.isascii() and unicodedata.category(c)[0] == "S")
    return tuple(sorted(found))


def _scripts(text: str) -> frozenset[str]:
    if text.isascii():
        return frozenset({"LATIN"} if any(map(str.isalpha, text)) else ())
    return frozenset("LATIN" if c.isascii() else unicodedata.name(c, "?").split(" ", 1)[0] for c in text if c.isalpha())
