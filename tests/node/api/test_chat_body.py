"""What the chat endpoint makes of a body: the command, or a 400 that names the field."""

from __future__ import annotations

import json

import msgspec
import pytest

from nsllm.node.api.chat_body import ChatBody, chat_commands
from nsllm.node.api.openai_errors import ApiError
from nsllm.node.api.requests import decode
from nsllm.node.errors import InvalidRequestError
from nsllm.record import Guide, Rendering

USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Well,"}
CALLS = {**SAID, "tool_calls": [{"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}]}


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
        ({"min_p": 0.05}, "min_p_micro", 50_000),
        ({"presence_penalty": -2}, "presence_penalty_micro", -2_000_000),
        ({"frequency_penalty": 0.5}, "frequency_penalty_micro", 500_000),
        ({"logit_bias": {"50": -100, "7": 0.5, "8": 0}}, "logit_bias", ((7, 500_000), (50, -100_000_000))),
        ({"min_tokens": 4}, "min_tokens", 4),
        ({"ignore_eos": True, "max_tokens": 48}, "min_tokens", 48),
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
        {"min_tokens": 0, "ignore_eos": False, "skip_special_tokens": True, "stop_token_ids": [], "priority": 3},
        {"structured_outputs": None, "guided_json": None, "add_generation_prompt": True, "request_id": "r"},
        {"continue_final_message": False, "chat_template_kwargs": {}},
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
        ({"n": 129}, "n"),
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
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "t"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0].image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "Hi", "mood": "good"}]}, "messages[0].mood"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"min_p": 1.1}, "min_p"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "05": 1}}, "logit_bias"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"stop_token_ids": "3"}, "stop_token_ids"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": ["a" * 65]}, "bad_words"),
        ({"bad_words": [str(i) for i in range(65)]}, "bad_words"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 1_000_001}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": "3"}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"length_penalty": 1.2}, "length_penalty"),
        ({"allowed_token_ids": [7]}, "allowed_token_ids"),
        ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
        ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "messages": [USER, {**SAID, "content": " "}]}, "continue_final_message"),
        ({"continue_final_message": True, "messages": [USER, CALLS]}, "continue_final_message"),
        (
            {"continue_final_message": True, "add_generation_prompt": True, "messages": [USER, SAID]},
            "add_generation_prompt",
        ),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"raise_exception": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"ä": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a" * 65: "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {f"a{i}": 1 for i in range(17)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"budget": 0.5}}, "chat_template_kwargs.budget"),
        ({"chat_template_kwargs": {"budget": None}}, "chat_template_kwargs.budget"),
        ({"chat_template_kwargs": {"budget": [1]}}, "chat_template_kwargs.budget"),
        ({"chat_template_kwargs": {"budget": 10**19}}, "chat_template_kwargs.budget"),
        ({"chat_template_kwargs": {"style": "x" * 4_095}}, "chat_template_kwargs.style"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(fields, param):
    with pytest.raises(ApiError) as caught:
        commands(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param


@pytest.mark.parametrize("opening", [{}, {"add_generation_prompt": False}])
def test_how_a_conversation_is_rendered(opening):
    sent = {"thinking": True, "budget": 1 - 10**19, "a" * 64: "ä" * 4_094, "style": 'a "b"'}
    options = (
        ("a" * 64, f'"{"ä" * 4_094}"'),
        ("budget", "-9999999999999999999"),
        ("style", '"a \\"b\\""'),
        ("thinking", "true"),
    )
    asked = command(messages=[USER, SAID], continue_final_message=True, chat_template_kwargs=sent, **opening)
    assert asked.rendering == Rendering(options=options, continues=True)
    assert asked.rendering.values() == sent
    assert command(messages=[USER, SAID]).rendering is None
    other = command(chat_template_kwargs=dict(reversed(sent.items())))
    assert other.rendering == Rendering(options=options)


def test_tokens_that_end_an_answer_are_a_set():
    assert command(stop_token_ids=[9, 3, 9]).sampling.stop_token_ids == (3, 9)
    assert command(bad_words=["b", "a", "b"]).sampling.bad_words == ("b", "a")


def test_a_prompt_that_is_cut_is_never_answered_by_a_like_one():
    for sent, kept in ((-1, 0), (1, 1), (1_000_000, 1_000_000)):
        asked = command(truncate_prompt_tokens=sent)
        assert (asked.sampling.truncate_prompt_tokens, asked.reuse, asked.semantic) == (kept, True, False)
    assert (command().sampling.truncate_prompt_tokens, command().semantic) == (None, True)


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
    assert len({c.sampling.seed for c in commands(n=128, seed=11)}) == 128


def test_commands_are_canonical_values():
    only = command(temperature=0.7, top_p=0.9, stop=["a"])
    for value in (*only.messages, only.sampling):
        assert msgspec.convert(msgspec.to_builtins(value), type(value)) == value


@pytest.mark.parametrize(
    ("fields", "told"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)],
)
def test_log_probabilities_are_always_generated(fields, told):
    only = command(**fields)
    assert only.top_logprobs == told
    assert only.reuse == (told is None)


def test_who_asks_stands_in_the_command():
    body = decode(json.dumps({"model": "m", "messages": [USER], "n": 2}).encode(), ChatBody)
    assert [each.client for each in chat_commands(body, "10.0.0.7")] == ["10.0.0.7"] * 2


SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"z":{"type":"integer"},"a":{"type":"string"}}}'


@pytest.mark.parametrize(
    ("fields", "guide"),
    [
        ({"response_format": {"type": "json_object"}}, Guide(kind="json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            Guide(kind="json_schema", text=SCHEMA_TEXT),
        ),
        ({"guided_json": SCHEMA}, Guide(kind="json_schema", text=SCHEMA_TEXT)),
        ({"guided_json": json.dumps(SCHEMA)}, Guide(kind="json_schema", text=SCHEMA_TEXT)),
        ({"guided_regex": "[0-9]+"}, Guide(kind="regex", text="[0-9]+")),
        ({"guided_choice": ["yes", "nö"]}, Guide(kind="choice", text='["yes","nö"]')),
        ({"guided_grammar": 'start: "a"'}, Guide(kind="grammar", text='start: "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, Guide(kind="json_schema", text=SCHEMA_TEXT)),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Guide(kind="regex", text="a+")),
        ({"structured_outputs": {"choice": ["a"]}}, Guide(kind="choice", text='["a"]')),
        ({"structured_outputs": {"json_object": True}}, Guide(kind="json_object")),
    ],
)
def test_formats_become_guides_with_properties_in_the_order_sent(fields, guide):
    assert command(**fields).guide == guide


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a" * 100_001}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"guided_choice": ["a"] * 1001}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": "b"}}, "structured_outputs.choice"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ],
)
def test_a_bad_format_is_named(fields, param):
    with pytest.raises(ApiError) as caught:
        commands(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}


def test_tools_keep_their_schemas_and_a_call_is_free():
    only = command(tools=[WEATHER, NOW])
    assert [(tool.name, tool.description, tool.parameters) for tool in only.tools] == [
        ("weather", "d", SCHEMA_TEXT),
        ("now", "", ""),
    ]
    assert only.guide is None
    assert command(tools=[WEATHER, NOW], tool_choice="auto") == only


def test_tools_that_may_not_be_called_are_left_out():
    assert command(tools=[WEATHER], tool_choice="none") == command()


def test_a_forced_call_is_a_guide():
    required = command(tools=[WEATHER, NOW], tool_choice="required").guide
    one = command(tools=[WEATHER, NOW], tool_choice={"type": "function", "function": {"name": "now"}}).guide
    single = command(tools=[WEATHER, NOW], tool_choice="required", parallel_tool_calls=False).guide
    assert "weather" in required.text
    assert "weather" not in one.text
    assert len({required.text, one.text, single.text}) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(65)]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "later"}}}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": "required", "guided_regex": "a"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_a_bad_tool_is_named(fields, param):
    with pytest.raises((ApiError, InvalidRequestError)) as caught:
        commands(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def test_a_conversation_with_a_call_and_its_result():
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    _, call, result = command(messages=messages).messages
    assert (call.role, str(call.content), call.tool_calls[0].id, call.tool_calls[0].name) == (
        "assistant",
        "",
        "c1",
        "now",
    )
    assert (result.role, str(result.content), result.tool_call_id) == ("tool", "noon", "c1")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": ""}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [CALL] * 65}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "messages[0].tool_call_id"),
        ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
    ],
)
def test_a_bad_tool_message_is_named(message, param):
    with pytest.raises(ApiError) as caught:
        commands(messages=[message])
    assert (caught.value.status, caught.value.param) == (400, param)
