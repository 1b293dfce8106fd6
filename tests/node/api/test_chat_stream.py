"""Chat completions as server-sent events: order, errors in mid-stream, leaving clients, slow readers."""

from __future__ import annotations

import json

import aiohttp
import httpx
import pytest
import trio
from aiohttp import web

from nsllm.node.errors import EngineError, OverloadedError

HELLO = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why?"}], "stream": True}


async def chunks(running, body) -> tuple[httpx.Response, list]:
    """All `data:` payloads in order; the last is the text `[DONE]` or an error."""
    async with running.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        raw = (await answer.aread()).decode()
    lines = [block for block in raw.split("\n\n") if block]
    assert all(line.startswith("data: ") for line in lines)
    return answer, [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


async def test_role_then_text_then_reason_then_done(running):
    answer, found = await chunks(running, HELLO)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-nsllm-source"] == "engine"
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"]["content"] for c in found[1:-2]) == "The sky scatters blue light."
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-2]["nsllm"]["publication"] == "pending"
    assert found[-1] == "[DONE]"
    assert {c["id"] for c in found[:-1]} == {answer.headers["x-nsllm-completion-id"]}
    assert all("usage" not in c for c in found[:-1])


async def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(running):
    _, found = await chunks(running, {**HELLO, "stream_options": {"include_usage": True}})
    assert found[-2]["choices"] == []
    assert found[-2]["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert all(c["usage"] is None for c in found[:-2])


@pytest.mark.parametrize("several", [1, 2])
async def test_usage_so_far_stands_in_every_chunk_when_asked_for(running, several):
    """Each choice's own until the last chunk, which is everybody's."""
    running.service.words = ('"usage":null,"choices":[', "b", "", "c")
    asked = {**HELLO, "n": several, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    _, found = await chunks(running, asked)
    for index in range(several):
        own = [c for c in found[:-2] if c["choices"][0]["index"] == index]
        assert [c["usage"]["completion_tokens"] for c in own] == [0, 1, 2, 4, 4]
        assert {c["usage"]["prompt_tokens"] for c in own} == {7}
        assert all(c["usage"]["total_tokens"] == 7 + c["usage"]["completion_tokens"] for c in own)
        assert own[1]["choices"][0]["delta"]["content"] == '"usage":null,"choices":['
    assert found[-2]["usage"]["completion_tokens"] == 4 * several


async def test_usage_that_nobody_knows_yet_is_null_until_the_end(running):
    running.service.counts_early = False
    asked = {**HELLO, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    _, found = await chunks(running, asked)
    assert {str(c["usage"]) for c in found[:-3]} == {"None"}
    assert found[-3]["usage"] == found[-2]["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


async def test_without_usage_nothing_is_counted_on_the_way(running):
    _, found = await chunks(running, {**HELLO, "stream_options": {"continuous_usage_stats": True}})
    assert not any("usage" in c for c in found[:-1])


async def test_several_choices_come_interleaved_under_the_first_ones_id(running):
    running.service.pace_s = 0.02
    answer, found = await chunks(running, {**HELLO, "n": 3, "stream_options": {"include_usage": True}})
    indexes = [c["choices"][0]["index"] for c in found[:-2]]
    assert indexes[0] == 0
    assert set(indexes) == {0, 1, 2}
    assert indexes != sorted(indexes)
    assert {c["id"] for c in found[:-1]} == {answer.headers["x-nsllm-completion-id"]}
    ends = [c["choices"][0] for c in found[:-2] if c["choices"][0]["finish_reason"]]
    assert len({end["nsllm"]["completion_id"] for end in ends}) == 3
    first = next(end for end in ends if end["index"] == 0)
    assert first["nsllm"]["completion_id"] == answer.headers["x-nsllm-completion-id"]
    assert found[-2]["usage"] == {"prompt_tokens": 7, "completion_tokens": 15, "total_tokens": 22}


async def test_an_error_before_the_first_token_has_a_status(running):
    running.service.fail_entering = OverloadedError("32 generations wait", hint="ask again")
    answer = await running.http.post("/v1/chat/completions", json=HELLO)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


async def test_an_error_in_mid_stream_goes_into_the_stream(running):
    running.service.fail_after = (2, EngineError("the model worker died"))
    answer, found = await chunks(running, HELLO)
    assert answer.status_code == 200
    assert found[-1]["error"]["code"] == "engine_failed"
    assert found[-1]["error"]["type"] == "server_error"


async def test_a_bug_in_mid_stream_shows_no_detail(running, caplog):
    running.service.fail_after = (2, ValueError("secret inner state"))
    _, found = await chunks(running, HELLO)
    assert found[-1]["error"] == {
        "message": "internal error; the peer's log has the trace",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "secret inner state" in caplog.text


async def test_a_client_that_leaves_cancels_its_generation(running):
    running.service.words = ["word "] * 1000
    running.service.pace_s = 0.005
    async with running.http.stream("POST", "/v1/chat/completions", json=HELLO) as answer:
        async for _ in answer.aiter_bytes():
            break
    with trio.fail_after(5):
        await running.service.cancelled.wait()
    assert running.service.sent < 1000


async def test_a_client_that_left_unseen_is_no_error_of_ours(running, monkeypatch, caplog):
    async def write(self, data):
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "write", write)
    running.service.words = ["word "] * 1000
    running.service.pace_s = 0.001
    await running.http.post("/v1/chat/completions", json=HELLO)
    with trio.fail_after(5):
        await running.service.cancelled.wait()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_plain_client_that_leaves_cancels_its_generation(running):
    running.service.pace_s = 60
    with trio.move_on_after(0.3):
        await running.http.post("/v1/chat/completions", json={**HELLO, "stream": False})
    with trio.fail_after(5):
        await running.service.cancelled.wait()


async def test_a_slow_reader_slows_its_own_generation_only_and_loses_nothing(start, slow_client):
    running = await start(chat_queue_events=4)
    stream = await slow_client(running)
    running.service.words = ["quick"]
    other = await running.http.post("/v1/chat/completions", json={**HELLO, "stream": False})
    assert other.json()["choices"][0]["message"]["content"] == "quick"
    with trio.fail_after(20):
        received = bytearray()
        while b"data: [DONE]" not in received[-200:]:
            received += await stream.receive_some(1 << 20)
    assert received.count(b"x" * 4000) == 1500


@pytest.mark.parametrize("stream", [True, False])
async def test_shutdown_in_mid_answer_is_told_and_quick(running, stream):
    running.service.pace_s = 60
    got: list[str] = []

    async def ask() -> None:
        answer = await running.http.post("/v1/chat/completions", json={**HELLO, "stream": stream})
        got.append(answer.text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while not running.service.commands:
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        running.scope.cancel()
    assert "the peer is shutting down" in got[0]


async def test_choices_wait_for_each_other_where_the_queue_is_short(running):
    running.service.room = 1
    _, found = await chunks(running, {**HELLO, "n": 3})
    assert {c["choices"][0]["index"] for c in found[:-1]} == {0, 1, 2}
    assert running.service.most_at_once == 1
    running.service.at_once = 1
    refused = await running.http.post("/v1/chat/completions", json={**HELLO, "n": 3})
    assert refused.status_code == 429


async def test_one_failed_choice_ends_the_reply(running):
    running.service.pace_s = 0.01
    running.service.fail_after = (3, EngineError("the model worker died"))
    _, found = await chunks(running, {**HELLO, "n": 2})
    assert found[-1]["error"]["code"] == "engine_failed"


async def test_a_long_wait_for_the_first_token_is_filled_with_comments(start, service):
    running = await start(heartbeat_s=0.05)
    service.pace_s = 0.3
    service.words = ["late"]
    service.before_start_s = 0.3
    async with running.http.stream("POST", "/v1/chat/completions", json=HELLO) as answer:
        assert answer.status_code == 200
        raw = (await answer.aread()).decode()
    assert raw.startswith(": the answer is on its way\n\n")
    assert raw.count(": the answer") >= 3
    data = [json.loads(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
    assert data[1]["choices"][0]["delta"]["content"] == "late"
    assert raw.endswith("data: [DONE]\n\n")


async def test_an_error_after_a_comment_goes_into_the_stream(start, service):
    running = await start(heartbeat_s=0.05)
    service.before_start_s = 0.2
    service.fail_after = (0, EngineError("the model worker died"))
    async with running.http.stream("POST", "/v1/chat/completions", json=HELLO) as answer:
        raw = (await answer.aread()).decode()
    assert '"code":"engine_failed"' in raw
    assert "[DONE]" not in raw
