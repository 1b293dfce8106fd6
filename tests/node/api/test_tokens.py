"""`/tokenize` and `/detokenize` as vLLM's clients know them."""

from __future__ import annotations

import pytest

from nsllm.record import Rendering

MODEL = "smollm2-135m-instruct"


async def test_a_prompts_tokens_with_and_without_the_tokenizers_own(running):
    answer = await running.http.post("/tokenize", json={"model": MODEL, "prompt": "one three"})
    assert answer.json() == {"count": 3, "max_model_len": 8192, "tokens": [1, 3, 5], "token_strs": None}
    bare = await running.http.post("/tokenize", json={"prompt": "one three", "add_special_tokens": False})
    assert bare.json()["tokens"] == [3, 5]
    assert [command.form for command in running.service.commands] == ["text", "text"]


async def test_tokens_as_the_vocabulary_writes_them(running):
    answer = await running.http.post("/tokenize", json={"model": MODEL, "prompt": "ab c", "return_token_strs": True})
    assert answer.json() == {"count": 3, "max_model_len": 8192, "tokens": [1, 2, 1], "token_strs": ["x", "xx", "x"]}


async def test_a_conversation_is_tokenized_as_it_would_be_asked(running):
    tool = {"type": "function", "function": {"name": "now"}}
    body = {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "good"}], "tools": [tool]}
    assert (await running.http.post("/tokenize", json=body)).json()["count"] == 3
    (command,) = running.service.commands
    assert (command.form, len(command.messages), command.tools[0].name) == ("chat", 2, "now")


async def test_a_conversation_is_tokenized_as_it_would_be_rendered(running):
    turns = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "go"}]
    body = {"messages": turns, "continue_final_message": True, "chat_template_kwargs": {"thinking": False}}
    assert (await running.http.post("/tokenize", json=body)).status_code == 200
    (command,) = running.service.commands
    assert command.rendering == Rendering(options=(("thinking", "false"),), continues=True)


async def test_tokens_become_text(running):
    answer = await running.http.post("/detokenize", json={"model": MODEL, "tokens": [2, 3]})
    assert answer.json() == {"prompt": "xx xxx"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "x" * 100_001}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [2**31]}, "tokens[0]"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * 100_001}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [], "model": ""}, "model"),
    ],
)
async def test_a_bad_field_is_named(running, path, body, param):
    answer = await running.http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_an_unknown_model_is_none(running):
    answer = await running.http.post("/detokenize", json={"tokens": [1], "model": "gpt-9"})
    assert answer.status_code == 404
