"""Tool calls are found in every spelling that models use, however their text is cut, and text is never lost."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.node.engine.tools import (
    CallArguments,
    CallStarted,
    ContentDelta,
    ToolCallStream,
    guide_for_tools,
    new_call_id,
    parse_answer,
    tool_schema,
)
from nsllm.node.errors import InvalidRequestError
from nsllm.record import Tool

NAMES = ("get_weather", "get", "now")
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": [1, {"a": "}"}]}}\n</tool_call>'
ARGUMENTS = '{"city": "Köln", "days": [1, {"a": "}"}]}'
CALLS = {
    "hermes": (HERMES, "", [("get_weather", ARGUMENTS)]),
    "text before and after": (f"Let me see.\n{HERMES}\nDone.", "Let me see.Done.", [("get_weather", ARGUMENTS)]),
    "two": (f"{HERMES}\n{HERMES}", "", [("get_weather", ARGUMENTS)] * 2),
    "any name in tags": ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', "", [("other", "{}")]),
    "arguments first": ('<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', "", [("now", '{"a": 1}')]),
    "no arguments": ('<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    "null": ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    "arguments in a string": (
        '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("now", '{"a": 1}')],
    ),
    "unclosed tag": ('<tool_call>{"name": "now", "arguments": {}}', "", [("now", "{}")]),
    "llama": ('{"name": "get_weather", "parameters": {"city": "Rome"}}', "", [("get_weather", '{"city": "Rome"}')]),
    "llama, typed": (
        ' {"type": "function", "function": "now", "parameters": {}}; {"name": "get", "parameters": {"a": 1}}',
        "",
        [("now", "{}"), ("get", '{"a": 1}')],
    ),
    "python tag": ('<|python_tag|>{"name": "now", "parameters": {}}', "", [("now", "{}")]),
    "mistral": (
        '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "get", "arguments": {"a": 1}}]',
        "",
        [("now", "{}"), ("get", '{"a": 1}')],
    ),
    "mistral without its mark": ('[{"name": "now", "arguments": {}}]', "", [("now", "{}")]),
    "newer mistral": ('[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}', "", [("get_weather", '{"city": "Rome"}')]),
    "newer mistral without marks": ('get_weather{"city": "Rome"}', "", [("get_weather", '{"city": "Rome"}')]),
    "cut off": ('<tool_call>{"name": "get", "arguments": {"a": "b', "", [("get", '{"a": "b')]),
}
TEXTS = [
    "",
    "  \n",
    "Plain words.\n\n",
    '{"name": "Bob", "age": 3}',
    '{"city": "Rome"}',
    '{"name": "now", "age": 3}',
    '[{"name": "Bob"}]',
    "[1, 2]",
    "[TOOL_CALLS] never mind",
    "[TOOL",
    "get up early",
    "get",
    "get[ARGS",
    "<tool_call> is a tag",
    "<tool_call>[1]</tool_call>",
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": "two words", "arguments": {}}</tool_call>',
    "a < b <tool",
    'Say {"name": "now", "arguments": {}}',
    "{",
    '{"name"',
    '{"name": "now',
]


def read(pieces):
    stream = ToolCallStream(NAMES, random.Random(1))
    events = [event for piece in pieces for event in stream.push(piece)] + stream.finish()
    text = "".join(event.text for event in events if isinstance(event, ContentDelta))
    started = [event for event in events if isinstance(event, CallStarted)]
    calls = [
        (
            one.name,
            "".join(event.text for event in events if isinstance(event, CallArguments) and event.index == one.index),
        )
        for one in started
    ]
    assert [one.index for one in started] == list(range(len(started)))
    assert [(call.id, call.name, call.arguments) for call in stream.calls] == [
        (one.id, *call) for one, call in zip(started, calls, strict=True)
    ]
    return text, calls


@pytest.mark.parametrize("case", CALLS)
def test_a_call_is_found_however_its_text_is_cut(case):
    answer, text, calls = CALLS[case]
    assert read([answer]) == (text, calls)
    assert read(list(answer)) == (text, calls)
    for cut in range(1, len(answer)):
        assert read([answer[:cut], answer[cut:]]) == (text, calls)


@pytest.mark.parametrize("answer", TEXTS)
def test_what_is_no_call_stays_text_letter_by_letter(answer):
    assert read([answer]) == (answer, [])
    assert read(list(answer)) == (answer, [])


FRAGMENTS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    '{"name": ',
    '"now"',
    ', "arguments": ',
    "{}",
    "}",
    "[",
    " ",
)


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12), st.randoms(use_true_random=False))
def test_any_text_reads_the_same_whole_and_in_pieces(parts, chance):
    answer = "".join(parts)
    cuts = sorted(chance.sample(range(len(answer) + 1), min(3, len(answer) + 1)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(pieces) == read([answer])


@given(st.dictionaries(st.text(), st.recursive(st.text() | st.integers() | st.booleans(), st.lists), max_size=4))
def test_arguments_are_handed_on_as_written(arguments):
    written = json.dumps(arguments)
    assert read([f'<tool_call>{{"name": "now", "arguments": {written}}}</tool_call>']) == ("", [("now", written)])


def test_text_and_arguments_go_out_as_soon_as_they_can():
    stream = ToolCallStream(NAMES, random.Random(1))
    assert stream.push("Hello") == [ContentDelta("Hello")]
    assert stream.push(" <") == []
    assert stream.push("3 ") == [ContentDelta(" <3")]
    assert stream.push('<tool_call>{"name": "now"') == [CallStarted(0, stream.calls[0].id, "now")]
    assert stream.push(', "arguments": {"a"') == [CallArguments(0, '{"a"')]
    assert stream.push(": 1") == [CallArguments(0, ": 1")]


def test_a_whole_answer_is_read_at_once():
    answer = parse_answer(f"Well.\n{HERMES}", NAMES, random.Random(1))
    assert answer.content == "Well."
    assert [(call.name, call.arguments) for call in answer.calls] == [("get_weather", ARGUMENTS)]


def test_ids_are_nine_letters_that_differ():
    rng = random.Random(1)
    ids = {new_call_id(rng) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == 9 and one.isalnum() for one in ids)


def test_the_guide_of_an_unknown_tool_is_refused():
    with pytest.raises(InvalidRequestError) as refused:
        guide_for_tools([Tool(name="now")], "then")
    assert refused.value.param == "tool_choice"


def test_a_schema_that_is_none_is_refused():
    for text in ("[]", "{"):
        with pytest.raises(InvalidRequestError) as refused:
            tool_schema(Tool(name="now", parameters=text))
        assert refused.value.param == "tools"


def test_schemas_beyond_any_guide_are_refused():
    schema = json.dumps({"type": "object", "description": "x" * 60_000})
    with pytest.raises(InvalidRequestError) as refused:
        guide_for_tools([Tool(name="a", parameters=schema), Tool(name="b", parameters=schema)])
    assert refused.value.param == "tools"
