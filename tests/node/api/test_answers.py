"""Tool calls and log-probabilities in replies, plain and streamed, as the `openai` client reads them."""

from __future__ import annotations

import json
from functools import partial

import openai
import pytest
import trio

from nsllm.node.api.answers import ChatAnswer, Frame
from nsllm.node.api.text_answer import TextAnswer, Wanted
from nsllm.node.chat import ChatCommand, ChatDelta, ChatFinished, ChatStarted, Source
from nsllm.node.engine.port import TokenLogprob
from nsllm.record import Message, Sampling

MODEL = "smollm2-135m-instruct"
MESSAGES = [{"role": "user", "content": "What time is it in Oslo?"}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
CALL = ["Let me see. ", "<tool", '_call>\n{"name": "now", "argu', 'ments": {"city": "Os', 'lo"}}\n', "</tool_call>"]
SECOND = ["\n<tool_call>\n", '{"name": "now", "arguments": {}}', "\n</tool_call>"]


@pytest.fixture
async def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=20) as made:
        yield made


def ask(client, **fields):
    """The client blocks: it runs in a thread."""

    def work():
        reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)
        return list(reply) if fields.get("stream") else reply

    return trio.to_thread.run_sync(work)


async def test_a_call_leaves_the_text_and_ends_the_answer(client, running):
    running.service.words = CALL
    (choice,) = (await ask(client, tools=TOOLS)).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "now", {"city": "Oslo"})
    assert call.id


async def test_an_answer_that_is_only_a_call_has_no_content(client, running):
    running.service.words = CALL[1:]
    (choice,) = (await ask(client, tools=TOOLS)).choices
    assert choice.message.content is None


async def test_without_tools_the_same_text_is_text(client, running):
    running.service.words = CALL
    (choice,) = (await ask(client)).choices
    assert choice.message.content == "".join(CALL)
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


async def test_a_call_that_is_cut_off_ends_for_its_length(client, running):
    running.service.words = CALL[:4]
    running.service.finish_reason = "length"
    (choice,) = (await ask(client, tools=TOOLS)).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Os'


@pytest.mark.parametrize(("parallel", "count"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("stream", [True, False])
async def test_calls_beyond_the_first_unless_parallel_ones_are_unwanted(client, running, parallel, count, stream):
    running.service.words = CALL + SECOND
    reply = await ask(client, tools=TOOLS, parallel_tool_calls=parallel, stream=stream)
    if stream:
        pieces = [p for chunk in reply for p in chunk.choices[0].delta.tool_calls or []]
        assert {piece.index for piece in pieces} == set(range(count))
    else:
        assert len(reply.choices[0].message.tool_calls) == count


async def test_a_streamed_call_comes_in_pieces(client, running):
    running.service.words = CALL
    chunks = await ask(client, tools=TOOLS, stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    pieces = [piece for delta in deltas for piece in delta.tool_calls or []]
    assert (pieces[0].id is not None, pieces[0].type, pieces[0].function.name) == (True, "function", "now")
    assert all(piece.id is None and piece.function.name is None for piece in pieces[1:])
    assert json.loads("".join(piece.function.arguments for piece in pieces)) == {"city": "Oslo"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_log_probabilities_of_every_token(client, running):
    reply = await ask(client, logprobs=True, top_logprobs=2)
    told = reply.choices[0].logprobs.content
    assert [token.token for token in told] == list(running.service.words)
    assert (told[0].logprob, told[0].bytes) == (-0.5, list(b"The "))
    assert [(top.token, top.logprob, top.bytes) for top in told[0].top_logprobs] == [
        ("The ", -0.5, list(b"The ")),
        ("\ufffd", -9999.0, [255]),
    ]
    assert running.service.commands[0].reuse is False
    assert (await ask(client)).choices[0].logprobs is None


@pytest.mark.parametrize("tools", [None, TOOLS])
async def test_streamed_log_probabilities_are_all_told(client, running, tools):
    chunks = await ask(client, logprobs=True, stream=True, **({"tools": tools} if tools else {}))
    told = [token for c in chunks if c.choices[0].logprobs for token in c.choices[0].logprobs.content]
    assert [token.token for token in told] == list(running.service.words)
    assert told[0].top_logprobs == []


def told(text: str, token: str) -> ChatDelta:
    return ChatDelta(text, (TokenLogprob(token.encode(), -1.0),))


@pytest.mark.parametrize(
    ("reason", "last", "tokens"),
    [("stop", told("", "<|im_end|>"), ["a", "b", "c"]), ("length", told("", "d"), ["a", "b", "c", "d"])],
)
@pytest.mark.parametrize("kind", [ChatAnswer, partial(TextAnswer, wanted=Wanted(logprobs=0))])
def test_tokens_without_text_wait_for_theirs_and_an_end_token_has_none(kind, reason, last, tokens):
    """The text of a token comes late if it may begin a stop string, or is an unfinished character."""
    command = ChatCommand(
        MODEL, (Message(role="user", content="Hi"),), Sampling(), "private", top_logprobs=0, reuse=False
    )
    started = ChatStarted("chatcmpl-1", MODEL, 1, Source("engine", "0x00"), "private")
    events = [told("A", "a"), told("", "b"), told("BC", "c"), last]
    whole, streamed = kind(0, command), kind(0, command)
    streamed.begin(Frame("chunk", started, include_usage=False))
    chunks = b""
    for answer in (whole, streamed):
        answer.started = started
        chunks = b"".join(answer.delta(event) for event in events)
        answer.finished = ChatFinished(reason, 1, 4, "private")
        chunks += answer.end(several=False, first=True)

    def spelled(choice) -> list[str]:
        found = choice["logprobs"] or {}
        return found.get("tokens") or [token["token"] for token in found.get("content") or []]

    assert spelled(whole.choice(several=False)) == tokens
    found = [json.loads(line[6:])["choices"][0] for line in chunks.decode().split("\n\n") if line]
    assert [token for choice in found for token in spelled(choice)] == tokens


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_of_a_chat_stand_where_vllm_tells_them(client, running, stream):
    reply = await ask(client, n=2, stream=stream, extra_body={"return_token_ids": True})
    replies = [chunk for chunk in reply if chunk.choices[0].finish_reason] if stream else [reply]
    choices = [choice for one in replies for choice in one.choices]
    assert [choice.token_ids for choice in choices] == [[0, 1, 2, 3, 4]] * 2
    assert [one.prompt_token_ids for one in replies if "prompt_token_ids" in one.model_extra] == [list(range(7))]
    assert not any(command.semantic for command in running.service.commands)


async def test_tokens_that_nobody_knows_are_null_and_those_that_nobody_wants_are_not_told(client, running):
    assert "token_ids" not in (await ask(client)).choices[0].model_extra
    running.service.prompt_token_ids = ()
    reply = await ask(client, extra_body={"return_token_ids": True})
    assert (reply.choices[0].token_ids, reply.prompt_token_ids) == (None, None)


async def test_choices_run_at_the_same_time(client, running):
    running.service.pace_s = 0.02
    reply = await ask(client, n=3)
    assert [choice.message.content for choice in reply.choices] == ["The sky scatters blue light."] * 3
    assert running.service.most_at_once == 3


async def test_a_chats_prompt_is_told_beside_the_choices(client, running):
    reply = await ask(client, n=3, extra_body={"prompt_logprobs": 1})
    content = running.service.commands[0].messages[-1].content
    first, *others = reply.prompt_logprobs
    assert (first, len(others)) == (None, len(content) - 1)
    assert others[0] == {
        str(ord(content[1])): {"logprob": -1.5, "rank": 2, "decoded_token": content[1]},
        "63": {"logprob": -0.25, "rank": 1, "decoded_token": "?"},
    }
    assert sorted(c.prompt_logprobs is None for c in running.service.commands) == [False, True, True]
    assert not running.service.commands[0].reuse
    assert "prompt_logprobs" not in (await ask(client)).model_dump()
