"""The word lists behind wordings and guards, from `data/words.toml`: small, English, and readable."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import chain
from typing import Any

Pattern = re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """What `words.toml` says, ready for use; its comments say what each list is."""

    function: frozenset[str]
    negations: frozenset[str]
    calendar: frozenset[str]
    poles: dict[str, str]
    """Each word to the kind that it belongs to; so are `same`, `units`, `persons` and `tenses`."""
    same: dict[str, str]
    units: dict[str, str]
    spelled: dict[str, str]
    persons: dict[str, str]
    tenses: dict[str, str]
    confusable: frozenset[frozenset[str]]
    speaking: Pattern
    """Finds persons that take part in asking only."""
    wrappers: tuple[Pattern, ...]
    ending: Pattern
    timely: Pattern
    counted: Pattern
    """Finds `one` where it is a number."""
    forms: tuple[tuple[str, Pattern], ...]
    formed: Pattern
    """Finds any of the forms: most questions ask for none."""
    asks: tuple[tuple[str, Pattern], ...]


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The lists of this release."""
    found: Any = tomllib.loads(resources.files("nsllm.cache_dht").joinpath("data/words.toml").read_text("utf-8"))
    units = _kinds(found["units"])
    before, after = "|".join(found["counted"].split()), "|".join(re.escape(unit) for unit in units)
    return Lexicon(
        function=frozenset(found["function"].split()),
        negations=frozenset(found["negations"].split()),
        calendar=frozenset(found["calendar"].split()),
        poles=_kinds(found["poles"]),
        same=_kinds(found["same"]),
        units=units,
        spelled=dict(found["spelled"]),
        persons=_kinds(found["persons"]),
        tenses=_kinds(found["tenses"]),
        confusable=frozenset(frozenset(pair.split()) for pair in found["confusable"]),
        speaking=re.compile(found["speaking"]),
        wrappers=tuple(map(re.compile, found["wrappers"])),
        ending=re.compile(found["ending"]),
        timely=re.compile(rf"\b(?:{'|'.join(found['timely'])})\b"),
        counted=re.compile(rf"\b(?:{before}) one\b|\bone (?=(?:{after})\b)"),
        forms=_patterns(found["forms"].items()),
        formed=re.compile("|".join(chain.from_iterable(found["forms"].values()))),
        asks=_patterns(found["asks"].items()),
    )


def _kinds(rows: dict[str, str]) -> dict[str, str]:
    return {word: kind for kind, others in rows.items() for word in (kind, *others.split())}


def _patterns(rows: Iterable[tuple[str, list[str]]]) -> tuple[tuple[str, Pattern], ...]:
    return tuple((name, re.compile("|".join(alternatives))) for name, alternatives in rows)
