"""Tools reach the model through a template that knows them, and in words where it does not."""

from __future__ import annotations

import json
import random
import shutil

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from nsllm.node.engine.backend import TemplateError
from nsllm.node.engine.conversation import (
    native_tools,
    native_turns,
    plain_turns,
    takes_tools,
    template_environment,
    uses_tools,
)
from nsllm.node.engine.fast.chat import ChatText
from nsllm.node.engine.general import TransformersBackend
from nsllm.node.engine.tools import parse_answer
from nsllm.record import Guide, Message, Rendering, Tool, ToolCall

WEATHER = Tool(
    name="get_weather",
    description="What the weather is like.",
    parameters='{"properties":{"city":{"type":"string"}},"required":["city"],"type":"object"}',
)
NOW = Tool(name="now")
CALLED = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Köln and Rome?"),
    Message(
        role="assistant",
        content="",
        tool_calls=(
            ToolCall(id="aaaaaaaaa", name="get_weather", arguments='{"city": "Köln"}'),
            ToolCall(id="bbbbbbbbb", name="get_weather", arguments="Rome"),
        ),
    ),
    Message(role="tool", content="12 °C", tool_call_id="aaaaaaaaa"),
    Message(role="tool", content="20 °C", tool_call_id="bbbbbbbbb"),
)
NATIVE = """{%- if tools is not none %}
    {{- "TOOLS " + tools | tojson(indent=1) }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == "tool" %}
        {{- "<tool " + m.tool_call_id + " " + m.name + ">" + m.content }}
    {%- elif m.tool_calls is defined %}
        {%- for call in m.tool_calls %}
            {{- "<call " + call.id + " " + call.function.name + ">" + call.function.arguments | tojson }}
        {%- endfor %}
    {%- else %}
        {%- generation %}{{ "<" + m.role + ">" + m.content }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if documents is not none %}no{% endif %}"""


@pytest.fixture
def put_template(backend, monkeypatch):
    """Gives the model another chat template."""
    if hasattr(backend, "_chat"):
        return lambda template: monkeypatch.setattr(backend._chat, "template", template)
    return lambda template: monkeypatch.setattr(backend._tokenizer, "chat_template", template)


def test_a_template_knows_tools_if_it_looks_at_them():
    assert takes_tools(NATIVE)
    assert not takes_tools("{{ 'tools are unknown' }}{% for tools in messages %}{{ tools }}{% endfor %}")
    with pytest.raises(jinja2.TemplateError):
        takes_tools("{% broken")


def test_a_conversation_without_tools_is_the_same_either_way():
    messages = (Message(role="user", content="hi"), Message(role="assistant", content="ho"))
    assert not uses_tools(messages, ())
    assert native_turns(messages) == plain_turns(messages, ())
    assert native_tools(()) is None


def test_templates_are_rendered_as_by_transformers():
    turns, tools = native_turns(CALLED), native_tools([WEATHER, NOW])
    given = {"tools": tools, "documents": None, "add_generation_prompt": True}
    ((expected,), _) = render_jinja_template([turns], chat_template=NATIVE, **given)
    assert template_environment().from_string(NATIVE).render(messages=turns, **given) == expected
    assert "Köln" in expected
    assert '<call bbbbbbbbb get_weather>"Rome"<tool aaaaaaaaa get_weather>12' in expected


def test_native_tools_are_openais():
    told = native_tools([WEATHER, NOW])
    assert [one["function"]["name"] for one in told] == ["get_weather", "now"]
    assert told[0]["function"]["parameters"] == json.loads(WEATHER.parameters)
    assert told[1]["function"]["parameters"]["properties"] == {}


def test_tools_are_told_in_the_system_message_of_a_template_that_knows_none():
    system, user, assistant, results = plain_turns(CALLED, [WEATHER, NOW])
    assert system["content"].startswith("Be brief.\n\n# Tools")
    assert '"name": "get_weather"' in system["content"]
    assert user == {"role": "user", "content": "Köln and Rome?"}
    assert assistant["role"] == "assistant"
    calls = parse_answer(assistant["content"], [], random.Random(1)).calls
    assert [(call.name, call.arguments) for call in calls] == [
        ("get_weather", '{"city": "Köln"}'),
        ("get_weather", "Rome"),
    ]
    assert results == {
        "role": "user",
        "content": "<tool_response>\n12 °C\n</tool_response>\n<tool_response>\n20 °C\n</tool_response>",
    }


def test_a_system_message_is_made_if_there_is_none():
    turns = plain_turns((Message(role="user", content="hi"),), [NOW])
    assert [turn["role"] for turn in turns] == ["system", "user"]


def test_what_a_user_writes_after_a_result_stays_a_turn_of_its_own():
    turns = plain_turns((*CALLED, Message(role="user", content="Thanks"), CALLED[-1]), ())
    assert [turn["role"] for turn in turns[3:]] == ["user", "user", "user"]


def test_the_model_reads_what_its_template_makes_of_tools(backend, put_template):
    prompt = backend.text(backend.chat_tokens(CALLED, tools=[WEATHER]))
    assert "# Tools" in prompt
    assert "<tool_response>" in prompt
    put_template(NATIVE)
    prompt = backend.text(backend.chat_tokens(CALLED, tools=[WEATHER]))
    assert prompt.startswith('TOOLS [\n {\n  "type": "function"')
    assert '<call aaaaaaaaa get_weather>{"city": "Köln"}' in prompt
    assert "TOOLS" not in backend.text(backend.chat_tokens(CALLED))


def test_a_folder_may_have_another_template_for_tools(tiny, tmp_path):
    folder = shutil.copytree(tiny.text, tmp_path / "named")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(NATIVE)
    chat, general = ChatText(folder), TransformersBackend(folder, tiny.encoder)
    for tools in ((), (WEATHER, NOW)):
        prompt = chat.chat_tokens(CALLED, tools=tools)
        assert prompt == general.chat_tokens(CALLED, tools=tools)
        assert chat.text(prompt).startswith("TOOLS") == bool(tools)


BEGUN = (Message(role="user", content="Köln?"), Message(role="assistant", content="It is  \n"))
TRIMMING = """{%- for m in messages %}{{ "<" + m.role + ">" + m.content | trim + "</>" }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}{% if thinking is defined and not thinking %}<none>{% endif %}"""
PLAIN = TRIMMING.replace(" | trim", "")
HIDING = TRIMMING.replace("m.content | trim", "m.content[:2]")
RENDERINGS = [
    Rendering(continues=True),
    Rendering(options=(("budget", "7"), ("thinking", "false"))),
    Rendering(options=(("thinking", "true"),), continues=True),
    Rendering(options=(("bos_token", '"<s>"'), ("eos_token", '"</s>"'))),
]


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("template", [None, PLAIN, TRIMMING, NATIVE, PLAIN + "{{ bos_token }}"])
def test_a_conversation_is_rendered_as_by_transformers(backend, put_template, general, rendering, template):
    if template is not None:
        put_template(template)
    source = template or general._tokenizer.chat_template
    expected = general._tokenizer.apply_chat_template(
        native_turns(BEGUN),
        chat_template=source,
        tokenize=False,
        add_generation_prompt=not rendering.continues,
        continue_final_message=rendering.continues,
        **rendering.values(),
    )
    assert backend.chat_tokens(BEGUN, rendering=rendering) == backend.tokens(expected)


def test_an_answer_goes_on_where_the_last_message_ends(backend, put_template):
    shown = {}
    for name, template in (("plain", PLAIN), ("trimming", TRIMMING)):
        put_template(template)
        shown[name] = backend.text(backend.chat_tokens(BEGUN, rendering=Rendering(continues=True)))
    assert shown == {"plain": "<user>Köln?</><assistant>It is  \n", "trimming": "<user>Köln?</><assistant>It is"}
    put_template(PLAIN)
    assert backend.text(backend.chat_tokens(BEGUN)).endswith("<assistant>It is  \n</><assistant>")
    off = Rendering(options=(("thinking", "false"),))
    assert backend.text(backend.chat_tokens(BEGUN, rendering=off)).endswith("</><assistant><none>")


def test_a_template_that_hides_the_last_message_is_not_gone_on_with(backend, put_template):
    put_template(HIDING)
    with pytest.raises(TemplateError, match=r"last message|final message"):
        backend.chat_tokens(BEGUN, rendering=Rendering(continues=True))


def test_options_that_a_template_does_not_look_at_change_nothing(backend):
    odd = Rendering(options=(("max_length", "1"), ("padding", '"max_length"'), ("return_dict", "true")))
    assert backend.chat_tokens(BEGUN, rendering=odd) == backend.chat_tokens(BEGUN)


def test_a_schema_that_is_none_is_refused_by_the_template(backend):
    with pytest.raises(TemplateError, match="not a JSON object"):
        backend.chat_tokens(CALLED, tools=[Tool(name="a", parameters="[]")])


def test_plain_text_is_no_conversation(backend):
    assert backend.text_tokens("Once upon") == backend.tokens("Once upon")  # the tiny tokenizer puts nothing before it


def test_a_models_tokens_can_be_guided(backend):
    state = backend.guides.start(Guide(kind="choice", text='["né"]'))
    for token in backend.tokens("né"):
        assert state.mask()[token // 32] >> (token % 32) & 1
        state.accept(token)
    allowed = [at for at in range(len(state.mask()) * 32) if state.mask()[at // 32] >> (at % 32) & 1]
    assert allowed == sorted(backend.end_token_ids)
