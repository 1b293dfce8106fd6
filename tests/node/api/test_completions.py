"""`/v1/completions`: text goes on, one prompt or several, plain and streamed, through the `openai` client."""

from __future__ import annotations

import openai
import pytest
import trio

from nsllm.node.errors import InvalidRequestError

MODEL = "smollm2-135m-instruct"


@pytest.fixture
async def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=20) as made:
        yield made


def aside(work):
    """The client blocks: it runs in a thread."""
    return trio.to_thread.run_sync(work)


async def test_one_prompt(client, running):
    reply = await aside(lambda: client.completions.create(model=MODEL, prompt="The sky", seed=4))
    assert (reply.object, reply.choices[0].text) == ("text_completion", "The sky scatters blue light.")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == 12
    (command,) = running.service.commands
    assert (command.form, command.messages[0].content, command.sampling.max_tokens) == ("text", "The sky", 16)


async def test_several_prompts_and_answers_have_indexes_in_the_prompts_order(client, running):
    reply = await aside(lambda: client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=5))
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert sorted(command.messages[0].content for command in running.service.commands) == ["a", "a", "b", "b"]
    assert reply.usage.prompt_tokens == 14  # each prompt once
    assert reply.usage.completion_tokens == 20


async def test_streamed(client):
    def ask():
        asked = {"model": MODEL, "prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}}
        return list(client.completions.create(**asked))

    chunks = await aside(ask)
    for index in (0, 1):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(choice.text for choice in own) == "The sky scatters blue light."
        assert own[-1].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 10


async def test_log_probabilities_in_the_older_shape(client):
    reply = await aside(lambda: client.completions.create(model=MODEL, prompt="a", logprobs=2))
    told = reply.choices[0].logprobs
    assert told.tokens == ["The ", "sky ", "scatters ", "blue ", "light."]
    assert told.text_offset == [0, 4, 8, 17, 22]
    assert told.token_logprobs == [-0.5] * 5
    assert told.top_logprobs[0] == {"The ": -0.5, "\ufffd": -9999.0}

    def ask():
        return list(client.completions.create(model=MODEL, prompt="a", logprobs=0, stream=True))

    offsets = [c.choices[0].logprobs.text_offset for c in await aside(ask) if c.choices[0].logprobs]
    assert offsets == [[0], [4], [8], [17], [22]]


async def test_an_echo_begins_each_text_with_its_prompt(client):
    said = "The sky scatters blue light."
    reply = await aside(lambda: client.completions.create(model=MODEL, prompt=["a: ", "b: "], echo=True))
    assert [one.text for one in reply.choices] == ["a: " + said, "b: " + said]
    assert reply.usage.completion_tokens == 10
    chunks = await aside(lambda: list(client.completions.create(model=MODEL, prompt="a: ", echo=True, stream=True)))
    assert [chunk.choices[0].text for chunk in chunks][:2] == ["a: ", "The "]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "a: " + said


async def test_tokens_of_prompt_and_answer(client):
    told = {"extra_body": {"return_token_ids": True}}
    reply = await aside(lambda: client.completions.create(model=MODEL, prompt=["a", "b"], **told))
    assert [(one.token_ids, one.prompt_token_ids) for one in reply.choices] == [([0, 1, 2, 3, 4], list(range(7)))] * 2
    stream = await aside(lambda: list(client.completions.create(model=MODEL, prompt="a", stream=True, **told)))
    assert stream[-1].choices[0].token_ids == [0, 1, 2, 3, 4]
    assert "token_ids" not in stream[0].choices[0].model_extra


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2, 3]]}, "prompt"),
        ({"prompt": ["a", True]}, "prompt[1]"),
        ({"prompt": "x" * 100_001}, "prompt"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ["a"] * 32, "n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
    ],
)
async def test_a_bad_field_is_named(running, fields, param):
    answer = await running.http.post("/v1/completions", json={"model": MODEL, "prompt": "a", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_harmless_fields_are_accepted(running):
    body = {"model": MODEL, "prompt": "a", "echo": False, "suffix": "", "best_of": 2, "n": 2, "user": "u"}
    assert (await running.http.post("/v1/completions", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "said", "named"),
    [
        ({}, "messages", "prompt"),
        ({"guided_regex": "(("}, "structured_outputs", "guided_regex"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format"),
        ({}, "model", "model"),
    ],
)
async def test_a_refusal_of_the_engine_names_the_field_that_was_sent(running, fields, said, named):
    running.service.fail_entering = InvalidRequestError("no", param=said)
    for stream in (True, False):
        body = {"model": MODEL, "prompt": "a", "stream": stream, **fields}
        answer = await running.http.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named)
