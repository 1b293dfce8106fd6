"""A guided answer always matches its guide, whatever the model would rather say; bad guides are refused."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nsllm.node.engine import guide as module
from nsllm.node.engine.guide import GuideBook, GuideError
from nsllm.node.engine.sampler import NoChoiceError, PlainChooser, Sampler
from nsllm.node.engine.tools import guide_for_tools, parse_answer
from nsllm.record import Guide, Sampling, Tool

WORDS = (
    '{"', '": ', '", "', "}", "[", "]", ", ", "true", "null", "12", "0.5", "name", "é", "🦊", "<tool_call>", "\n", "  ",
)  # fmt: skip
SPECIAL = (b"<s>", b"</s>", b"<|end|>")
TOKENS = [*SPECIAL, *(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS)]
ENDS = (1, 2)
MOST_TOKENS = 1500


def encode(text):
    return [len(SPECIAL) + byte for byte in text.encode()]


def new_book():
    return GuideBook(
        token_bytes=[*TOKENS, *[b""] * 5].__getitem__,  # a model may have more logits than tokens
        encode=encode,
        vocabulary=len(TOKENS) + 5,
        special_token_ids=range(len(SPECIAL)),
        end_token_ids=ENDS,
    )


@pytest.fixture(scope="module")
def book():
    return new_book()


def write(book, guide, seed, most=MOST_TOKENS, chooser=None, hurry=0.0):
    """What a model of random mind writes under a guide at temperature 1; (text, whether it ended by itself).

    Args:
        hurry: liking for tokens that close something, so that answers end.
    """
    chance = torch.Generator().manual_seed(seed)
    sampler = Sampler(
        Sampling(temperature_micro=1_000_000, top_p_micro=1_000_000, seed=seed), [], guide=book.start(guide)
    )
    closing = [at for at, token in enumerate(TOKENS) if token[:1] in b'"]}'] + list(ENDS)
    spelled = b""
    for _ in range(most):
        row = torch.randn(len(TOKENS) + 5, generator=chance) * 3
        row[closing] += hurry
        (choice,) = (chooser or PlainChooser()).choose_all([sampler], [row])
        if isinstance(choice, NoChoiceError):
            raise choice
        if choice.token in ENDS:
            return spelled.decode(), True
        assert len(SPECIAL) <= choice.token < len(TOKENS)
        spelled += TOKENS[choice.token]
    return spelled.decode(errors="ignore"), False


def schema_guide(schema):
    return Guide(kind="json_schema", text=json.dumps(schema))


scalars = st.sampled_from(
    [
        {"type": "integer", "minimum": -5, "maximum": 300},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 12},
        {"type": "string", "pattern": "^[a-f]{2,5}$"},
        {"type": "string", "format": "date"},
        {"enum": ["a", 1, None, {"b": [2]}]},
        {"const": "🦊"},
        {"type": ["integer", "null"], "multipleOf": 7},
    ]
)


def nested(inner):
    arrays = st.builds(
        lambda items, most: {"type": "array", "items": items, "minItems": 1, "maxItems": most},
        inner,
        st.integers(1, 3),
    )
    objects = st.dictionaries(st.sampled_from(["a", "b", 'q"uote', "ü"]), inner, min_size=1, max_size=3).flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties)), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
        )
    )
    return arrays | objects | st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each})


@settings(max_examples=40, deadline=None)
@given(st.recursive(scalars, nested, max_leaves=5), st.integers(0, 2**32))
def test_an_answer_under_a_schema_parses_and_validates(book, schema, seed):
    text, ended = write(book, schema_guide(schema), seed, hurry=3.0)
    assume(ended)
    jsonschema.validate(json.loads(text), schema)


def test_most_answers_under_a_schema_end(book):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    ended = [write(book, schema_guide(schema), seed, hurry=3.0)[1] for seed in range(10)]
    assert sum(ended) >= 8


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_a_json_object_is_one(book, seed):
    text, ended = write(book, Guide(kind="json_object"), seed, hurry=4.0)
    assume(ended)
    assert isinstance(json.loads(text), dict)


EXPRESSIONS = ("[a-z]{3,9}@[a-z]{1,5}\\.com", "(yes|no)( maybe)?", "\\d{4}-\\d{2}", "[^x]{2}x", "[一-龥]{1,2}", ".{5}")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.integers(0, 2**32))
def test_an_answer_under_a_regex_matches_it(book, expression, seed):
    text, ended = write(book, Guide(kind="regex", text=expression), seed)
    assert ended
    assert re.fullmatch(expression, text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.integers(0, 2**32))
def test_an_answer_is_one_of_the_choices(book, choices, seed):
    text, ended = write(book, Guide(kind="choice", text=json.dumps(choices)), seed)
    assert ended
    assert text in choices


@pytest.mark.parametrize(
    "grammar",
    ['start: "a" item{2,3}\nitem: /[0-9]/ | "x"', 'root ::= "a" item item item?\nitem ::= [0-9] | "x"'],
    ids=["Lark", "llama.cpp's"],
)
def test_an_answer_under_a_grammar_matches_it(book, grammar):
    for seed in range(10):
        text, ended = write(book, Guide(kind="grammar", text=grammar), seed)
        assert ended
        assert re.fullmatch("a[0-9x]{2,3}", text)


WEATHER = Tool(
    name="get_weather",
    parameters='{"additionalProperties":false,"properties":{"city":{"maxLength":9,"type":"string"}},'
    '"required":["city"],"type":"object"}',
)
NOW = Tool(name="now")


@pytest.mark.parametrize(("choice", "names"), [(None, {"get_weather", "now"}), ("now", {"now"})])
def test_a_forced_answer_is_calls_of_the_tools(book, choice, names):
    seen = set()
    for seed in range(12):
        text, ended = write(book, guide_for_tools([WEATHER, NOW], choice), seed, hurry=2.0)
        assert ended
        answer = parse_answer(text, [], random.Random(seed))
        assert answer.content == ""
        assert 1 <= len(answer.calls) <= (8 if choice is None else 1)
        for call in answer.calls:
            arguments = json.loads(call.arguments)
            assert set(arguments) == ({"city"} if call.name == "get_weather" else set())
        seen |= {call.name for call in answer.calls}
    assert seen == names


@pytest.mark.parametrize(
    ("further", "open_"),
    [({}, False), ({"additionalProperties": True}, True), ({"patternProperties": {"^x": {}}}, True)],
)
def test_a_call_has_no_arguments_that_its_tool_does_not_declare(book, further, open_):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], **further}
    guide = guide_for_tools([Tool(name="t", parameters=json.dumps(schema))])
    texts = [write(book, guide, seed, most=60)[0] for seed in range(40)]
    assert any(re.search(r'"a": ?(true|false), ?"', text) for text in texts) is open_


def test_calls_that_may_not_be_parallel_are_one(book):
    guide = guide_for_tools([WEATHER, NOW], parallel=False)
    for seed in range(12):
        text, ended = write(book, guide, seed, hurry=2.0)
        assert ended
        assert len(parse_answer(text, [], random.Random(seed)).calls) == 1


def test_an_answer_that_is_cut_off_is_a_beginning(book):
    text, ended = write(book, schema_guide({"const": "a long constant"}), 1, most=5)
    assert not ended
    assert '"a long constant"'.startswith(text)


def test_nothing_but_an_end_token_is_left_at_the_end(book):
    state = book.start(Guide(kind="choice", text='["é"]'))
    for token in encode("é"):
        state.accept(token)
    allowed = [at for at in range(len(TOKENS) + 5) if state.mask()[at // 32] >> (at % 32) & 1]
    assert allowed == list(ENDS)


def test_a_token_that_must_not_come_ends_the_answer(book):
    state = book.start(Guide(kind="choice", text='["yes"]'))
    with pytest.raises(NoChoiceError, match="guide gave up"):
        state.accept(encode("n")[0])


def test_a_guide_that_becomes_too_much_ends_its_answer(monkeypatch):
    monkeypatch.setitem(module.LIMITS, "max_lexer_states", 500)
    with pytest.raises(NoChoiceError, match="too many states"):
        write(new_book(), Guide(kind="regex", text="[ab]*a[ab]{60}"), 1, hurry=-50.0)


def test_answers_under_the_same_guide_do_not_disturb_each_other(book):
    guide = Guide(kind="choice", text='["ab"]')
    first, second = book.start(guide), book.start(guide)
    first.accept(encode("a")[0])
    second.accept(encode("a")[0])
    first.accept(encode("b")[0])
    second.accept(encode("b")[0])


def test_compiled_guides_are_kept_the_oldest_goes(monkeypatch):
    book = new_book()
    compiled = []
    real = GuideBook._compile
    monkeypatch.setattr(GuideBook, "_compile", lambda self, guide: compiled.append(guide.text) or real(self, guide))
    monkeypatch.setattr(module, "KEPT_GUIDES", 2)
    for text in ('["kept1"]', '["kept2"]', '["kept1"]', '["kept3"]', '["kept1"]', '["kept2"]'):
        book.start(Guide(kind="choice", text=text))
    assert compiled == ['["kept1"]', '["kept2"]', '["kept3"]', '["kept2"]']


BAD = {
    "no JSON": (Guide(kind="json_schema", text="{"), "response_format"),
    "no schema": (schema_guide({"type": "objct"}), "response_format"),
    "impossible": (schema_guide({"type": "string", "minLength": 3, "maxLength": 2}), "response_format"),
    "not supported": (schema_guide({"not": {"type": "string"}}), "response_format"),
    "nested too deeply": (Guide(kind="json_schema", text='{"items":' * 5000 + "{}" + "}" * 5000), "response_format"),
    "too large": (
        schema_guide({"allOf": [{"anyOf": [{"pattern": f"a{i}.*b{j}"} for i in range(6)]} for j in range(6)]}),
        "response_format",
    ),
    "multiples": (schema_guide({"type": "integer", "multipleOf": 1_234_567}), "response_format"),
    "multiples of a product": (
        schema_guide({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}),
        "response_format",
    ),
    "multiples beyond measure": (schema_guide({"multipleOf": 1e300}), "response_format"),
    "multiples beyond numbers": (Guide(kind="json_schema", text='{"multipleOf": 1e9999999}'), "response_format"),
    "multiples in a grammar": (
        Guide(kind="grammar", text='start: %json {"type": "integer", "multiple\\u004ff": 1234567}'),
        "structured_outputs",
    ),
    "regex": (Guide(kind="regex", text="(a"), "structured_outputs"),
    "look-around": (Guide(kind="regex", text="(?=a)b"), "structured_outputs"),
    "no choices": (Guide(kind="choice", text="[]"), "structured_outputs"),
    "choices that are no texts": (Guide(kind="choice", text="[1]"), "structured_outputs"),
    "unknown rule": (Guide(kind="grammar", text="start: nothing"), "structured_outputs"),
    "empty": (Guide(kind="grammar", text=""), "structured_outputs"),
    "broken GBNF": (Guide(kind="grammar", text="root ::= ("), "structured_outputs"),
    "long GBNF": (Guide(kind="grammar", text='root ::= "a"' + " " * 30_000), "structured_outputs"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_guide_that_cannot_be_kept_is_refused_with_a_reason(book, case):
    guide, param = BAD[case]
    with pytest.raises(GuideError) as refused:
        book.start(guide)
    assert refused.value.param == param
    assert 20 < len(str(refused.value)) < 400


def test_small_multiples_are_no_trouble(book):
    schema = {
        "type": "array",
        "items": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 9},
        "maxItems": 2,
    }
    text, ended = write(book, schema_guide(schema), 3, hurry=2.0)
    assert ended
    jsonschema.validate(json.loads(text), schema)


def test_a_model_without_an_end_cannot_be_guided():
    book = GuideBook(
        token_bytes=TOKENS.__getitem__, encode=encode, vocabulary=len(TOKENS), special_token_ids=(), end_token_ids=()
    )
    with pytest.raises(GuideError, match="no token that ends"):
        book.start(Guide(kind="json_object"))
