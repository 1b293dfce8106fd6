"""What the chat endpoint makes of a body: the command, or a 400 that names the field."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest

from nsllm.node.api.openai_errors import ApiError
from nsllm.node.api.requests import MAX_DEPTH, ChatBody, chat_commands, decode

USER = {"role": "user", "content": "Hi"}


def commands(**fields):
    body = {"model": "m", "messages": [USER], **fields}
    return chat_commands(decode(json.dumps(body).encode(), ChatBody))


def command(**fields):
    (only,) = commands(**fields)
    return only


@pytest.mark.parametrize(
    ("fields", "attribute", "value"),
    [
        ({"temperature": 0.2}, "temperature_micro", 200_000),
        ({"temperature": 0}, "temperature_micro", 0),
        ({"temperature": 2}, "temperature_micro", 2_000_000),
        ({"temperature": None}, "temperature_micro", None),
        ({"top_p": 0.95}, "top_p_micro", 950_000),
        ({"top_k": 40}, "top_k", 40),
        ({"top_k": -1}, "top_k", 0),
        ({"repetition_penalty": 1.1}, "repetition_penalty_micro", 1_100_000),
        ({"seed": -7}, "seed", -7),
        ({"max_tokens": 12}, "max_tokens", 12),
        ({"max_completion_tokens": 13}, "max_tokens", 13),
        ({"max_completion_tokens": 13, "max_tokens": 13}, "max_tokens", 13),
        ({"stop": "."}, "stop", (".",)),
        ({"stop": [".", "!"]}, "stop", (".", "!")),
        ({}, "max_tokens", None),
        ({}, "stop", ()),
    ],
)
def test_sampling_fields_become_integers(fields, attribute, value):
    assert getattr(command(**fields).sampling, attribute) == value


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "store": False},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "top_logprobs": 0, "n": 1},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"logit_bias": {}, "functions": [], "parallel_tool_calls": True, "prediction": None},
    ],
)
def test_fields_that_change_nothing_are_accepted(fields):
    assert command(**fields) == command()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e300}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_completion_tokens": 1, "max_tokens": 2}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 7}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"visibility": "everybody"}, "visibility"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [USER] * 257}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "t"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "Hi", "mood": "good"}]}, "messages[0].mood"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"min_p": 0.1}, "min_p"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(fields, param):
    with pytest.raises(ApiError) as caught:
        commands(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing):
    body = {"model": "m", "messages": [USER]}
    del body[missing]
    with pytest.raises(ApiError, match="missing field") as caught:
        decode(json.dumps(body).encode(), ChatBody)
    assert caught.value.param == missing


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": NaN}',
        b'{"temperature": Infinity}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "m", "messages": []} trailing',
        b'{"messages": [{"role": "user", "content": [' + b'{"a":' * 100_000,
        b'{"tool_choice": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "words", "nan", "infinity", "bytes", "surrogate", "trailing", "deep object", "deep list",
         "deep"],
)  # fmt: skip
def test_what_is_not_json_is_refused(body):
    with pytest.raises(ApiError) as caught:
        decode(body, ChatBody)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"text"'])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(ApiError) as caught:
        decode(body, ChatBody)
    assert caught.value.code == "invalid_type"


def test_text_parts_are_joined_by_lines_and_developer_is_system():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
    ]
    found = command(messages=messages).messages
    assert [(m.role, str(m.content)) for m in found] == [("system", "Be brief."), ("user", "One\nTwo")]


def test_an_earlier_answer_dumped_whole_is_accepted():
    dumped = {"role": "assistant", "content": "Hello.", "refusal": None, "annotations": None, "audio": None,
              "function_call": None, "tool_calls": None}  # fmt: skip
    assert command(messages=[USER, dumped, USER]).messages[1].content == "Hello."


def test_several_choices_are_generated_with_seeds_derived_from_the_given_one():
    three = commands(n=3, seed=11)
    assert [c.reuse for c in three] == [False] * 3
    seeds = [c.sampling.seed for c in three]
    assert seeds[0] == 11
    assert len(set(seeds)) == 3
    assert seeds == [c.sampling.seed for c in commands(n=3, seed=11)]
    assert [c.sampling.seed for c in commands(n=2)] == [None, None]
    assert command().reuse


def test_commands_are_canonical_values():
    only = command(temperature=0.7, top_p=0.9, stop=["a"])
    for value in (*only.messages, only.sampling):
        assert msgspec.convert(msgspec.to_builtins(value), type(value)) == value


def test_depth_is_bounded_even_where_a_library_lifted_the_recursion_limit():
    """py-evm does so: a parser that recursed would run over the end of the C stack and end the peer."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        for opening in (b"[", b'{"a":'):
            with pytest.raises(ApiError) as caught:
                decode(b'{"model": "m", "messages": [], "tools": ' + opening * 150_000, ChatBody)
            assert caught.value.code == "invalid_json"
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    "text",
    ["[[[" * 100, "]]]" * 100, '"[' * 100, '\\"[' * 100, "{" * 80],
)
def test_brackets_inside_strings_are_no_depth(text):
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": text}]})
    assert decode(body, ChatBody).messages[0].content == text


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
def test_the_deepest_body_that_is_read(depth):
    inner = depth - 2
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "metadata": null, "tools": ['
    body += b"[" * inner + b"]" * inner + b"]}"
    if depth <= MAX_DEPTH:
        decode(body, ChatBody)
    else:
        with pytest.raises(ApiError, match="deeper than 64"):
            decode(body, ChatBody)


def test_a_string_that_does_not_end_costs_linear_time():
    with pytest.raises(ApiError):
        decode(b'{"model": "' + b'\\"[' * 300_000, ChatBody)
