"""What upstreams are asked: every field of a request, as each kind of server spells it, or a refusal that names it."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.tools import guide_for_tools
from nsllm.node.engine.upstream_request import make_post
from nsllm.node.errors import InvalidRequestError
from nsllm.record import Guide, Message, Rendering, Sampling, Tool, ToolCall

MODEL = "big-model"
CHAT = (Message(role="user", content="a secret question"),)
TOOLS = (Tool(name="now"), Tool(name="get", description="Gets.", parameters='{"type":"object"}'))


def body(request, owner=None):
    return json.loads(make_post(MODEL, request, owner).body)


def added(request, owner=None):
    """What a request has beside the conversation."""
    plain = body(EngineRequest(CHAT, Sampling()), owner)
    return {name: value for name, value in body(request, owner).items() if plain.get(name) != value}


ALL = Sampling(
    temperature_micro=700_000, top_p_micro=900_000, top_k=0, repetition_penalty_micro=1_100_000, seed=5, max_tokens=6,
    stop=("a", "b"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "differs"),
    [
        ("vllm", {"top_k": -1, "repetition_penalty": 1.1}),
        (None, {"top_k": -1, "repetition_penalty": 1.1}),
        ("llamacpp", {"top_k": 0, "repeat_penalty": 1.1}),
        ("me", {"top_k": 0, "repeat_penalty": 1.1}),
        ("nsllm", {"top_k": 0, "repetition_penalty": 1.1, "visibility": "private"}),
    ],
)
def test_every_parameter_is_spelled_as_the_server_spells_it(owner, differs):
    sent = body(EngineRequest(CHAT, ALL), owner)
    for name in ("model", "messages", "stream", "stream_options"):
        sent.pop(name)
    common = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "max_tokens": 6, "stop": ["a", "b"]}
    assert sent == common | differs


@pytest.mark.parametrize("name", Sampling.__struct_fields__)
def test_no_parameter_is_forgotten(name):
    """Whoever adds one to `Sampling` is told to spell it for upstreams, too."""
    values = {
        "stop": ("x",),
        "stop_token_ids": (3,),
        "bad_words": ("x",),
        "logit_bias": ((3, 1),),
        "temperature_micro": 500_000,
    }
    one = Sampling(**{name: values.get(name, 3)})
    assert added(EngineRequest(CHAT, one), "vllm")


@pytest.mark.parametrize("name", ["stop_token_ids", "bad_words", "truncate_prompt_tokens"])
@pytest.mark.parametrize("owner", [None, "llamacpp", "openai"])
def test_what_only_some_servers_take_is_refused_for_others(name, owner):
    values = {"stop_token_ids": (3,), "bad_words": ("x",), "truncate_prompt_tokens": 3}
    with pytest.raises(InvalidRequestError) as caught:
        make_post(MODEL, EngineRequest(CHAT, Sampling(**{name: values[name]})), owner)
    assert caught.value.param == name


def test_a_prompt_is_cut_to_what_there_is_room_for_in_the_servers_words():
    assert added(EngineRequest(CHAT, Sampling(truncate_prompt_tokens=0)), "vllm") == {"truncate_prompt_tokens": -1}


@pytest.mark.parametrize("name", [one.name for one in fields(EngineRequest)])
def test_no_field_of_a_request_is_forgotten(name):
    values = {
        "messages": (Message(role="user", content="another"),),
        "sampling": ALL,
        "form": "text",
        "prompt_token_ids": (1,),
        "tools": TOOLS,
        "guide": Guide(kind="json_object"),
        "rendering": Rendering(options=(("thinking", "true"),)),
        "top_logprobs": 0,
        "prompt_logprobs": 0,
        "client": "somebody",
        "model": b"x" * 32,
        "images": (b"PNG",),
    }
    request = EngineRequest(**{"messages": CHAT, "sampling": Sampling(), name: values[name]})
    if name in {"client", "model"}:  # whose turn it is and which engine answers is decided here
        assert not added(request)
    elif name == "rendering":
        assert added(request, "vllm") == {"chat_template_kwargs": {"thinking": True}}
    elif name in {"images", "prompt_token_ids", "prompt_logprobs"}:
        with pytest.raises(InvalidRequestError, match="upstream"):
            make_post(MODEL, request, None)
    else:
        assert added(request)


@pytest.mark.parametrize(
    ("rendering", "sent"),
    [
        (Rendering(continues=True), {"continue_final_message": True, "add_generation_prompt": False}),
        (Rendering(options=(("a", "1"), ("b", '"x"'))), {"chat_template_kwargs": {"a": 1, "b": "x"}}),
    ],
)
def test_a_template_is_directed_where_the_server_can(rendering, sent):
    request = EngineRequest(CHAT, Sampling(), rendering=rendering)
    assert added(request, "vllm") == added(request, "nsllm") == sent
    for owner in (None, "llamacpp", "openai"):
        with pytest.raises(InvalidRequestError) as refused:
            make_post(MODEL, request, owner)
        assert refused.value.param == next(iter(sent))


def test_a_text_prompt_goes_where_no_template_is():
    post = make_post(MODEL, EngineRequest(CHAT, Sampling(), form="text"), None)
    assert post.path == "/completions"
    sent = json.loads(post.body)
    assert sent["prompt"] == "a secret question"
    assert "messages" not in sent
    with pytest.raises(InvalidRequestError) as refused:
        make_post(MODEL, EngineRequest(CHAT, Sampling(), form="text", top_logprobs=1), None)
    assert refused.value.param == "logprobs"


def test_tools_calls_and_results_are_openais():
    called = Message(role="assistant", content="", tool_calls=(ToolCall(id="abc", name="now", arguments="{}"),))
    result = Message(role="tool", content="12:00", tool_call_id="abc")
    sent = body(EngineRequest((*CHAT, called, result), Sampling(), tools=TOOLS))
    assert sent["messages"][1]["tool_calls"] == [
        {"id": "abc", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    ]
    assert sent["messages"][2] == {"role": "tool", "content": "12:00", "tool_call_id": "abc"}
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["now", "get"]
    assert sent["tools"][1]["function"]["parameters"] == {"type": "object"}
    assert "tool_choice" not in sent


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, True, {"tool_choice": "required"}),
        (None, False, {"tool_choice": "required", "parallel_tool_calls": False}),
        ("get", True, {"tool_choice": {"type": "function", "function": {"name": "get"}}}),
    ],
)
def test_a_forced_call_is_a_tool_choice(choice, parallel, expected):
    guide = guide_for_tools(TOOLS, choice, parallel=parallel)
    sent = added(EngineRequest(CHAT, Sampling(), tools=TOOLS, guide=guide), "vllm")
    del sent["tools"]
    assert sent == expected


SCHEMA = Guide(kind="json_schema", text='{"type":"object","properties":{"b":{},"a":{}}}')
STRICT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(SCHEMA.text), "strict": True}}
REGEX = Guide(kind="regex", text="a+")
CHOICE = Guide(kind="choice", text='["ja","nein \\"x\\""]')
LARK = Guide(kind="grammar", text='start: "a"')
GBNF = Guide(kind="grammar", text='root ::= "a"')
WORDS = 'root ::= "ja" | "nein \\"x\\""'


@pytest.mark.parametrize(
    ("guide", "owner", "expected"),
    [
        (Guide(kind="json_object"), None, {"response_format": {"type": "json_object"}}),
        (SCHEMA, None, {"response_format": STRICT}),
        (SCHEMA, "vllm", {"response_format": STRICT}),
        (
            SCHEMA,
            "llamacpp",
            {"response_format": {"type": "json_object", "schema": json.loads(SCHEMA.text)}},
        ),
        (REGEX, "vllm", {"structured_outputs": {"regex": "a+"}}),
        (CHOICE, "nsllm", {"structured_outputs": {"choice": ["ja", 'nein "x"']}}),
        (LARK, "vllm", {"structured_outputs": {"grammar": 'start: "a"'}}),
        (REGEX, "sglang", {"regex": "a+"}),
        (GBNF, "sglang", {"ebnf": 'root ::= "a"'}),
        (CHOICE, "sglang", {"ebnf": WORDS}),
        (GBNF, "llamacpp", {"grammar": 'root ::= "a"'}),
        (CHOICE, "me", {"grammar": WORDS}),
    ],
)
def test_a_guide_is_spelled_as_the_server_spells_it(guide, owner, expected):
    assert added(EngineRequest(CHAT, Sampling(), guide=guide), owner) == expected


@pytest.mark.parametrize(
    ("guide", "owner"), [(REGEX, None), (REGEX, "llamacpp"), (LARK, "llamacpp"), (LARK, "sglang"), (CHOICE, "library")]
)
def test_a_guide_that_the_server_has_no_word_for_is_refused(guide, owner):
    with pytest.raises(InvalidRequestError) as refused:
        make_post(MODEL, EngineRequest(CHAT, Sampling(), guide=guide), owner)
    assert refused.value.param == "structured_outputs"


def test_a_schema_that_is_none_never_reaches_the_server():
    for text in ("", "[]", '{"a":}'):
        with pytest.raises(InvalidRequestError) as refused:
            make_post(MODEL, EngineRequest(CHAT, Sampling(), guide=Guide(kind="json_schema", text=text)), None)
        assert refused.value.param == "response_format"


def test_probabilities_are_asked_for():
    assert added(EngineRequest(CHAT, Sampling(), top_logprobs=3)) == {"logprobs": True, "top_logprobs": 3}
