"""The `openai` Python client, unchanged, against the server."""

from __future__ import annotations

import openai
import pytest
import trio

MODEL = "smollm2-135m-instruct"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture
async def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=20) as made:
        yield made


def aside(work):
    """The client blocks: it runs in a thread."""
    return trio.to_thread.run_sync(work)


async def test_plain(client, running):
    reply = await aside(lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0.5, seed=3))
    assert reply.choices[0].message.content == "The sky scatters blue light."
    assert reply.usage.total_tokens == 12
    assert reply.nsllm["publication"] == "pending"
    (command,) = running.service.commands
    assert command.sampling.temperature_micro == 500_000
    assert command.visibility is None


async def test_streamed(client):
    def ask():
        stream = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        return list(stream)

    chunks = await aside(ask)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The sky scatters blue light."
    assert chunks[-1].usage.completion_tokens == 5
    assert chunks[-2].nsllm["source"] == "engine"


async def test_visibility_and_headers(client, running):
    raw = await aside(
        lambda: client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, extra_body={"visibility": "group"}
        )
    )
    assert raw.headers["x-nsllm-visibility"] == "group"
    assert running.service.commands[0].visibility == "group"


async def test_several_choices(client, running):
    reply = await aside(lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2, seed=1))
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert len(running.service.commands) == 2


async def test_embeddings_whose_client_asks_for_base64(client):
    reply = await aside(lambda: client.embeddings.create(model="all-minilm-l6-v2", input=["a", "bcd"]))
    assert [item.embedding[0] for item in reply.data] == [1.0, 3.0]


async def test_models(client):
    assert (await aside(client.models.list)).data[0].id == MODEL
    assert (await aside(lambda: client.models.retrieve(MODEL))).id == MODEL


async def test_errors_become_the_clients_own(client):
    with pytest.raises(openai.NotFoundError) as missing:
        await aside(lambda: client.chat.completions.create(model="gpt-9", messages=MESSAGES))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await aside(lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES, top_logprobs=3))
    assert bad.value.param == "top_logprobs"


async def test_a_leaving_client_cancels(client, running):
    running.service.words = ["word "] * 1000
    running.service.pace_s = 0.005

    def ask() -> None:
        stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        for _ in stream:
            stream.close()
            break

    await aside(ask)
    with trio.fail_after(5):
        await running.service.cancelled.wait()
