"""Two questions that differ in what matters are never like, however near their embeddings are."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from nsllm.cache_dht.calibration import shipped
from nsllm.cache_dht.guards import (
    STALE_MS,
    TIMELY_MS,
    changes,
    difference,
    has_expired,
    may_resemble,
    objection,
    same_but_question,
)
from nsllm.cache_dht.observations import BINS
from nsllm.cache_dht.wording import MAX_CHARS, read
from nsllm.record import Guide, Message, Rendering, Request, Sampling, Tool

LIMIT_PPM = 20_000
SAME = [
    ("who wrote the book frankenstein", "Who is the author of the book Frankenstein?"),
    ("when was the eiffel tower built", "In what year was the Eiffel Tower built?"),
    ("what is the number of legs of a spider", "how many legs does a spider have"),
    ("could you please tell me how tall mount everest is", "how tall is Mount Everest?"),
    ("is it true that bats are blind?", "Are bats blind?"),
    ("where did Dr. Smith work? thanks", "where did dr. smith work"),
    ("how many moons does mars have", "how many moons does Mars have?"),
    ("how can one boil an egg", "how do you boil an egg"),
    ("how do i install python on linux", "How to install Python on Linux?"),
    ("tell me why the sky is blue", "why is the sky blue"),
    ("how do i organise a party", "How do I organize a party?"),
    ("what caused world war one", "what caused world war 1"),
    ("in france, who was the first president of the republic", "who was the first president of the republic in france"),
]
DIFFERENT = [
    ("negation", "is it safe to eat raw eggs", "is it not safe to eat raw eggs"),
    ("negation", "which birds can fly", "which birds can't fly"),
    ("numbers", "what happened in 1914", "what happened in 1918"),
    ("numbers", "what is 17 - 4", "what is 4 - 17"),
    ("numbers", "who was louis xvi, the king with two sons", "who was louis xvi, the king with three sons"),
    ("units", "how far is the moon in miles", "how far is the moon in kilometers"),
    ("dates", "what is the weather like in june in rome", "what is the weather like in july in rome"),
    ("asks", "who painted the mona lisa", "when was the mona lisa painted"),
    ("asks", "where do pandas live", "why do pandas live"),
    ("poles", "what is the highest mountain of africa", "what is the lowest point of africa"),
    ("poles", "who was king before henry", "who was king after henry"),
    ("poles", "what causes anemia", "what prevents anemia"),
    ("format", "name the planets", "name the planets as JSON"),
    ("format", "what is dna", "what is dna in one word"),
    ("format", "what does hund mean", "what does hund mean in french"),
    ("language", "what is dna", "what is днк"),
    ("names", "what did Marie Curie study", "what did Ada Lovelace study"),
    ("numbers", "is 0.5 greater than 0.25", "is 0.25 greater than 0.5"),
    ("numbers", "how often does 3 go into 12", "how often does 12 go into 3"),
    ("numbers", "is x > y", "is x < y"),
    ("signs", "how much is $100 in yen", "how much is €100 in yen"),
    ("signs", "what does 😀 mean", "what does 😢 mean"),
    ("initials", "What is the IT department?", "What is it department?"),
    ("poles", "how do i turn on the lights", "how do i turn off the lights"),
    ("poles", "how do i log in to my account", "how do i log out of my account"),
    ("poles", "who hit tom", "who was hit by tom"),
    ("persons", "is it my turn", "is it your turn"),
    ("persons", "what do i owe her", "what does she owe me"),
    ("persons", "what did he tell her", "what did she tell him"),
    ("tenses", "who is the chairman of apple", "who was the chairman of apple"),
    ("tenses", "when will the store close", "when did the store close"),
    ("ways", "can you fly from rome to paris", "can you fly to rome from paris"),
    ("order", "when did germany invade poland by land", "when did poland invade germany by land"),
    ("order", "who is the girl in the tower of london", "who is the tower in the girl of london"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_paraphrases_pass(one: str, other: str) -> None:
    assert objection(one, other, 0) is None
    assert objection(other, one, 0) is None


@pytest.mark.parametrize(("guard", "one", "other"), DIFFERENT)
def test_what_differs_is_named(guard: str, one: str, other: str) -> None:
    assert objection(one, other, 0) == guard
    assert objection(other, one, 0) == guard


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("who is the father of isaac", "who is the son of isaac"),
        ("how can i prevent cancer", "how can i treat cancer"),
        ("is it good for dogs", "is it safe for dogs"),
        ("what is a big city in texas", "what is the biggest city in texas"),
        ("is sodium nitrate safe to eat", "is sodium nitrite safe to eat"),
        ("what is the largest country in england", "what is the largest county in england"),
        ("what is a casual relationship", "what is a causal relationship"),
        ("can i have a few", "can i have few"),
        ("what is grade a beef", "what is grade d beef"),
        ("what is the us policy on trade", "what is the policy on trade"),
        ("中国的首都是哪里", "韩国的首都是哪里"),
        ("quién es el hermano de luis", "quién es el hermana de luis"),
    ],
)
def test_words_that_look_or_turn_alike_are_words_of_their_own(one: str, other: str) -> None:
    first, second = read(one), read(other)
    assert first is not None
    assert second is not None
    nearest = shipped().likeness.of(1.0, first, second)
    assert difference(first, second) is not None or shipped().error_bound(nearest, NONE, NONE) > LIMIT_PPM


NONE = (0.0,) * (2 * BINS)


def test_no_near_miss_by_hand_is_served_even_if_its_embedding_is_the_same() -> None:
    lines = Path(__file__).with_name("near_misses.txt").read_text("utf-8").splitlines()
    pairs = [tuple(line.split("\t")) for line in lines if not line.startswith("#")]
    assert len(pairs) > 350
    served = []
    for one, other in (*pairs, *(pair[::-1] for pair in pairs)):
        first, second = read(one), read(other)
        assert first is not None
        assert second is not None
        if difference(first, second) is None:
            likeness = shipped().likeness.of(1.0, first, second)
            if shipped().error_bound(likeness, NONE, NONE) <= LIMIT_PPM:
                served.append((one, other))
    assert served == []


def test_answers_to_timely_questions_expire_soon_and_all_others_in_the_end() -> None:
    for timely in ("who is the president of france", "what is the latest version of python", "weather in rome"):
        assert objection(timely, timely, TIMELY_MS - 1) is None
        assert objection(timely, timely, TIMELY_MS) == "age"
    assert objection("why is the sky blue", "why is the sky blue?", STALE_MS - 1) is None
    assert objection("why is the sky blue", "why is the sky blue?", STALE_MS) == "age"


def test_an_earlier_turn_makes_a_question_timely_and_a_long_one_is_read_to_its_end() -> None:
    assert changes(request("what is the weather in paris?", "cloudy", "and in rome?"))
    assert not changes(request("why is the sky blue?", "it is the weather today", "and the sea?"))
    assert changes(request("word " * MAX_CHARS + "who leads now?"))
    assert has_expired(request("who leads now?"), TIMELY_MS)
    assert not has_expired(request("why is the sky blue?"), 10 * STALE_MS)


def test_nothing_is_said_of_empty_and_very_long_questions() -> None:
    assert read(" ") is None
    assert read("a" * (MAX_CHARS + 1)) is None
    assert objection("", "", 0) == "length"


def request(*contents: str, **changes: object) -> Request:
    messages = tuple(Message(role="user" if i % 2 == 0 else "assistant", content=c) for i, c in enumerate(contents))
    plain = Request(model="tiny", model_digest=bytes(32), messages=messages, sampling=Sampling())
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"sampling": Sampling(temperature_micro=0)}, True),
        ({"sampling": Sampling(max_tokens=5)}, True),
        ({"sampling": Sampling(temperature_micro=1)}, False),
        ({"sampling": Sampling(top_p_micro=1)}, False),
        ({"sampling": Sampling(temperature_micro=0, seed=1)}, False),
        ({"sampling": Sampling(logit_bias=((1, 1),))}, False),
        ({"sampling": Sampling(truncate_prompt_tokens=0)}, False),
        ({"tools": (Tool(name="clock"),)}, False),
        ({"guide": Guide(kind="json_object")}, False),
        ({"attachments": (bytes(32),)}, False),
        ({"rendering": Rendering(options=(("thinking", "true"),))}, False),
        ({"form": "text"}, False),
    ],
)
def test_only_plain_questions_look_for_like_ones(changes: dict[str, object], may: bool) -> None:
    assert may_resemble(request("why?", **changes)) is may


def test_everything_but_the_question_must_be_equal() -> None:
    assert same_but_question(request("why?"), request("how?"))
    assert same_but_question(request("hi", "hello", "why?"), request("hi", "hello", "how?"))
    assert not same_but_question(request("hi", "hello", "why?"), request("hi", "go away", "how?"))
    assert not same_but_question(request("why?"), request("hi", "hello", "why?"))
    assert not same_but_question(request("why?"), request("how?", sampling=Sampling(max_tokens=1)))
    assert not same_but_question(request("why?"), request("how?", model_digest=bytes([1]) * 32))
