"""Chat completions at the HTTP edge, plain."""

from __future__ import annotations

import pytest

from nsllm.node.chat import Source

HELLO = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


async def test_a_plain_completion_has_openais_shape_and_says_where_it_comes_from(running):
    answer = await running.http.post("/v1/chat/completions", json=HELLO)
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The sky scatters blue light.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert body["nsllm"]["publication"] == "pending"
    assert body["nsllm"]["receipt"] == f"/v1/receipts/{body['id']}"
    assert answer.headers["x-nsllm-source"] == "engine"
    assert answer.headers["x-nsllm-generator"] == body["nsllm"]["generator"]
    assert answer.headers["x-nsllm-completion-id"] == body["id"]
    assert answer.headers["x-nsllm-visibility"] == "public"
    assert "x-nsllm-score" not in answer.headers


async def test_a_cached_answer_carries_score_and_height(running):
    running.service.source = Source("cache", "0x" + "b2" * 20, score_ppm=812_345, height=17, age_ms=900)
    running.service.publication = "certified"
    answer = await running.http.post("/v1/chat/completions", json=HELLO)
    assert answer.headers["x-nsllm-source"] == "cache"
    assert answer.headers["x-nsllm-score"] == "0.812345"
    assert answer.headers["x-nsllm-height"] == "17"
    assert answer.json()["nsllm"]["age_ms"] == 900


@pytest.mark.parametrize("publication", ["private", "unpublished", "withheld"])
async def test_no_receipt_is_promised_where_there_will_be_none(running, publication):
    running.service.publication = publication
    answer = await running.http.post("/v1/chat/completions", json=HELLO)
    assert answer.json()["nsllm"]["receipt"] is None
