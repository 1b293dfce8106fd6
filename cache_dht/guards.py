"""Guards: what two questions must share before likeness counts at all. Pure.

An embedding hears that two questions are about the same; it hardly hears "not", "1998" or "in Celsius". Each guard
names what differs, and a difference is final: the answer is generated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from nsllm.cache_dht.likeness import misspelt
from nsllm.cache_dht.wording import MAX_CHARS, Wording, read, timely
from nsllm.record import Request

HOUR_MS: Final = 60 * 60 * 1000
TIMELY_MS: Final = HOUR_MS
"""Age at which an answer to a question that changes with time is too old."""
STALE_MS: Final = 90 * 24 * HOUR_MS
"""Age at which any answer is, but for an exact repeat."""


def changes(request: Request) -> bool:
    """Whether an answer to this request changes with time, by what its user says in any turn."""
    return any(timely(message.content[-MAX_CHARS:]) for message in request.messages if message.role == "user")


def has_expired(request: Request, age_ms: int) -> bool:
    """Whether an answer of this age is too old even for an exact repeat."""
    return age_ms >= TIMELY_MS and changes(request)


def may_resemble(request: Request) -> bool:
    """Whether a like question's answer may stand in for this request at all.

    Only a plain question: sampling left to the peer, or temperature 0; no seed, tools, guide or attachments, nothing of
    it cut off, and nothing told to the model's template.
    """
    sampling = request.sampling
    left = sampling.temperature_micro is None and sampling.top_p_micro is None and sampling.top_k is None
    return (
        (left or sampling.temperature_micro == 0)
        and sampling.seed is None
        and sampling.truncate_prompt_tokens is None
        and not (sampling.logit_bias or request.tools or request.attachments)
        and request.guide is None
        and request.rendering is None
        and request.form == "chat"
        and request.messages[-1].role == "user"
    )


def same_but_question(asked: Request, cached: Request) -> bool:
    """Whether two requests differ in their last user turn only: same model, parameters, earlier turns."""
    if len(asked.messages) != len(cached.messages) or cached.messages[-1].role != "user":
        return False
    return msgspec.structs.replace(asked, messages=(*asked.messages[:-1], cached.messages[-1])) == cached


def objection(asked: str, cached: str, age_ms: int) -> str | None:
    """Which guard tells two questions apart; None if none does.

    Args:
        asked: the question now.
        cached: the one that was answered.
        age_ms: of the answer.

    >>> objection("Is it safe?", "Is it not safe?", 0)
    'negation'
    """
    one, other = read(asked), read(cached)
    if one is None or other is None:
        return "length"
    if age_ms >= (TIMELY_MS if one.timely or other.timely else STALE_MS):
        return "age"
    return difference(one, other)


def difference(one: Wording, other: Wording) -> str | None:
    """The first guard that tells two wordings apart, by name.

    Names count only where both questions have upper case in mid-sentence; elsewhere names are words like others, and
    likeness weighs them.
    """
    return next((name for name, equal in GUARDS.items() if not equal(one, other)), None)


def _in_order(one: Wording, other: Wording) -> bool:
    """Whether the words that both share stand in one order, but for a part that is put in front."""
    spelled = {word: like for word in set(one.words) - set(other.words) for like in other.words if misspelt(word, like)}
    words = tuple(spelled.get(word, word) for word in one.words)
    shared = set(words) & set(other.words)
    first = list(dict.fromkeys(word for word in words if word in shared))
    second = list(dict.fromkeys(word for word in other.words if word in shared))
    if first == second:
        return True
    return len(first) > 3 and any(first[at:] + first[:at] == second for at in range(1, len(first)))


def _same_tenses(one: Wording, other: Wording) -> bool:
    """A tense in common, where both have verbs that tell one."""
    return not one.tenses or not other.tenses or bool(one.tenses & other.tenses)


def _same_asks(one: Wording, other: Wording) -> bool:
    """Who, when, …; what the lists cannot tell apart from a yes-or-no question counts as one."""
    return one.asks == other.asks or {one.asks, other.asks} == {"is", "do"}


GUARDS: Final[dict[str, Callable[[Wording, Wording], bool]]] = {
    "negation": lambda one, other: one.negated == other.negated,
    "numbers": lambda one, other: one.numbers == other.numbers,
    "signs": lambda one, other: one.signs == other.signs,
    "units": lambda one, other: one.units == other.units,
    "dates": lambda one, other: one.calendar == other.calendar,
    "asks": _same_asks,
    "poles": lambda one, other: one.poles == other.poles,
    "persons": lambda one, other: one.persons == other.persons,
    "tenses": _same_tenses,
    "format": lambda one, other: one.forms == other.forms,
    "language": lambda one, other: one.scripts == other.scripts and one.foreign == other.foreign,
    "initials": lambda one, other: one.initials == other.initials,
    "names": lambda one, other: not one.names or not other.names or one.names == other.names,
    "ways": lambda one, other: not one.ways or not other.ways or one.ways == other.ways,
    "order": _in_order,
}
"""By name, whether two wordings pass."""
