"""`/v1/completions`: text goes on, one prompt or several, plain and streamed, through the `openai` client."""

from __future__ import annotations

import json

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


ECHOED = {
    "text_offset": [0, 1, 2],
    "token_logprobs": [None, -1.5, -1.5],
    "tokens": ["a", ":", " "],
}


@pytest.mark.parametrize("top", [0, 1, 2])
async def test_an_echo_tells_the_prompts_probabilities_as_the_answers(client, running, top):
    running.service.finish_reason = "length"
    asked = {"model": MODEL, "prompt": "a: ", "echo": True, "logprobs": top, "n": 2}
    reply = await aside(lambda: client.completions.create(**asked))
    for choice in reply.choices:
        assert choice.text == "a: The sky scatters blue light."
        told = choice.logprobs
        assert told.tokens == [*ECHOED["tokens"], "The ", "sky ", "scatters ", "blue ", "light."]
        assert told.text_offset == [0, 1, 2, 3, 7, 11, 20, 25]
        assert told.token_logprobs == [None, -1.5, -1.5, *[-0.5] * 5]
        likely = [None, {"?": -0.25}, {"?": -0.25, ":": -1.5}][top]
        assert told.top_logprobs[:2] == [None, likely]
        assert [choice.text[at:].startswith(one) for at, one in zip(told.text_offset, told.tokens, strict=True)]
    assert [command.prompt_logprobs for command in running.service.commands] == [top, top]
    assert not any(command.reuse for command in running.service.commands)


async def test_a_streamed_echo_tells_the_prompt_in_one_chunk(client):
    asked = {"model": MODEL, "prompt": ["a: ", "b: "], "echo": True, "logprobs": 0, "stream": True}
    chunks = await aside(lambda: list(client.completions.create(**asked)))
    for index, letter in enumerate("ab"):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert own[0].text == f"{letter}: "
        told = own[0].logprobs.model_dump()
        assert {name: told[name] for name in ECHOED} == {**ECHOED, "tokens": [letter, ":", " "]}
        assert "".join(one.text for one in own) == f"{letter}: The sky scatters blue light."
        assert [at for one in own if one.logprobs for at in one.logprobs.text_offset] == [0, 1, 2, 3, 7, 11, 20, 25]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_alone(client, running, stream):
    asked = {"model": MODEL, "prompt": "a: ", "echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
    reply = await aside(lambda: client.completions.create(**asked))
    found = [chunk.choices[0] for chunk in reply] if stream else [reply.choices[0]]
    assert "".join(one.text for one in found) == "a: "
    assert [token for one in found if one.logprobs for token in one.logprobs.tokens] == ["a", ":", " "]
    assert found[-1].finish_reason == "stop"
    (command,) = running.service.commands
    assert (command.sampling.max_tokens, command.visibility, command.reuse) == (1, "private", False)


async def test_probabilities_of_the_prompt_in_vllms_shape(client, running):
    asked = {"model": MODEL, "prompt": ["ab", "cd"], "n": 2, "extra_body": {"prompt_logprobs": 1}}
    reply = await aside(lambda: client.completions.create(**asked))
    for choice, second in zip(reply.choices, "bbdd", strict=True):
        assert choice.prompt_logprobs == [
            None,
            {
                str(ord(second)): {"logprob": -1.5, "rank": 2, "decoded_token": second},
                "63": {"logprob": -0.25, "rank": 1, "decoded_token": "?"},
            },
        ]
        assert choice.logprobs is None
    reply = await aside(lambda: client.completions.create(**(asked | {"extra_body": {"prompt_logprobs": 0}})))
    assert list(reply.choices[0].prompt_logprobs[1]) == [str(ord("b"))]
    both = {"model": MODEL, "prompt": "ab", "echo": True, "logprobs": 2, "extra_body": {"prompt_logprobs": 1}}
    (choice,) = (await aside(lambda: client.completions.create(**both))).choices
    assert list(choice.prompt_logprobs[1]) == [str(ord("b")), "63"]
    assert choice.logprobs.top_logprobs[1] == {"?": -0.25, "b": -1.5}
    assert (
        "prompt_logprobs" not in (await aside(lambda: client.completions.create(model=MODEL, prompt="a"))).model_dump()
    )


async def test_more_of_prompts_than_fits_into_memory_is_refused(running, monkeypatch):
    monkeypatch.setattr("nsllm.node.api.serving.MAX_PROMPT_ENTRIES", 30)
    for fields, named in (({"prompt_logprobs": 1}, "prompt_logprobs"), ({"echo": True, "logprobs": 1}, "logprobs")):
        for prompt, status in (("x" * 15, 200), ("x" * 16, 400)):
            body = {"model": MODEL, "prompt": prompt, **fields}
            answer = await running.http.post("/v1/completions", json=body)
            assert answer.status_code == status
        assert answer.json()["error"]["param"] == named


@pytest.mark.parametrize("count", [1, 3])
async def test_the_likeliest_answers_are_told(client, running, count):
    running.service.says_seed = True
    asked = {"model": MODEL, "prompt": ["a", "b"], "n": count, "best_of": 7, "seed": 5}
    reply = await aside(lambda: client.completions.create(**asked))
    for at, prompt in enumerate("ab"):
        own = [command for command in running.service.commands if command.messages[0].content == prompt]
        seeds = {command.sampling.seed for command in own}
        assert len(seeds) == 7
        told = [int(choice.text.removesuffix(" end")) for choice in reply.choices[at * count : (at + 1) * count]]
        assert set(told) <= seeds
        assert [seed % 97 for seed in told] == sorted(seed % 97 for seed in seeds)[:count]
    assert [choice.index for choice in reply.choices] == list(range(2 * count))
    assert all(choice.logprobs is None for choice in reply.choices)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (14, 28)
    assert not any(command.reuse for command in running.service.commands)
    assert {command.top_logprobs for command in running.service.commands} == {0}
    asked_a = [number for number, one in enumerate(running.service.commands, 1) if one.messages[0].content == "a"]
    (first,) = [
        number
        for number in asked_a
        if reply.choices[0].text.startswith(f"{running.service.commands[number - 1].sampling.seed} ")
    ]
    assert reply.id.endswith(f"{first:024d}")


async def test_the_best_with_probabilities_and_what_is_withheld_comes_last(client, running):
    running.service.says_seed = True
    asked = {"model": MODEL, "prompt": "a", "best_of": 2, "logprobs": 1, "seed": 5, "echo": True}
    reply = await aside(lambda: client.completions.create(**asked))
    best = min(command.sampling.seed % 97 for command in running.service.commands)
    assert reply.choices[0].logprobs.token_logprobs == [None, -best / 97, -best / 97]
    running.service.finish_reason = "content_filter"
    assert (await aside(lambda: client.completions.create(**asked))).choices[0].finish_reason == "content_filter"


async def test_prompts_may_be_tokens(client, running):
    for prompt, asked in (
        ([5, 6], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        (["a", [7]], [(), (7,)]),
    ):
        running.service.commands.clear()
        reply = await aside(lambda prompt=prompt: client.completions.create(model=MODEL, prompt=prompt, echo=True))
        found = {command.prompt_token_ids: command.messages[0].content for command in running.service.commands}
        assert found == {ids: "" if ids else "a" for ids in asked}
        echoed = [" ".join(map(str, ids)) or "a" for ids in asked]
        assert [one.text for one in reply.choices] == [text + "The sky scatters blue light." for text in echoed]


async def test_tokens_that_the_model_has_not_are_the_prompts_fault(running):
    running.service.fail_entering = InvalidRequestError("9 is no token", param="prompt_token_ids")
    answer = await running.http.post("/v1/completions", json={"model": MODEL, "prompt": [9]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


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
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [[1], [2, -1]]}, "prompt[1][1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[[1]]]}, "prompt[0][0]"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [1] * 100_001}, "prompt"),
        ({"prompt": [[1]] * 33}, "prompt"),
        ({"echo": True, "truncate_prompt_tokens": 3}, "echo"),
        ({"prompt": ["a", True]}, "prompt[1]"),
        ({"prompt": "x" * 100_001}, "prompt"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": "2"}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"prompt": ["a"] * 32, "best_of": 5}, "best_of"),
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
        ({"best_of": 2}, "logprobs", "best_of"),
        ({"best_of": 2, "logprobs": 1}, "logprobs", "logprobs"),
        ({"echo": True, "logprobs": 1}, "prompt_logprobs", "logprobs"),
        ({"prompt": [5]}, "prompt_token_ids", "prompt"),
    ],
)
async def test_a_refusal_of_the_engine_names_the_field_that_was_sent(running, fields, said, named):
    running.service.fail_entering = InvalidRequestError("no", param=said)
    for stream in (True, False)[bool("best_of" in fields) :]:
        body = {"model": MODEL, "prompt": "a", "stream": stream, **fields}
        answer = await running.http.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named)


async def test_an_error_in_mid_stream_names_the_field_that_was_sent(running):
    running.service.fail_after = (2, InvalidRequestError("no", param="messages"))
    answer = await running.http.post("/v1/completions", json={"model": MODEL, "prompt": "a", "stream": True})
    last = answer.text.rstrip().split("\n\n")[-1]
    assert answer.status_code == 200
    assert json.loads(last.removeprefix("data: "))["error"]["param"] == "prompt"
