"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
import struct

import pytest

ENCODER = "all-minilm-l6-v2"
CHAT = "smollm2-135m-instruct"


@pytest.mark.parametrize("model", [ENCODER, CHAT])
async def test_one_text_as_floats(running, model):
    answer = await running.http.post("/v1/embeddings", json={"model": model, "input": "one two"})
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "list"
    assert body["data"][0]["embedding"][:2] == [7.0, 0.5]
    assert len(body["data"][0]["embedding"]) == 384
    assert body["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert body["model"] == model


async def test_base64_is_little_endian_float32(running):
    body = {"model": ENCODER, "input": ["a", "bcd"], "encoding_format": "base64"}
    data = (await running.http.post("/v1/embeddings", json=body)).json()["data"]
    assert [item["index"] for item in data] == [0, 1]
    values = struct.unpack("<384f", base64.b64decode(data[1]["embedding"]))
    assert values[:2] == (3.0, 0.5)


async def test_many_texts_go_to_the_engine_in_slices_and_come_back_in_order(running):
    texts = ["x" * (i + 1) for i in range(70)]
    body = (await running.http.post("/v1/embeddings", json={"model": ENCODER, "input": texts})).json()
    assert [item["embedding"][0] for item in body["data"]] == [float(i + 1) for i in range(70)]
    assert [len(part) for part in running.service.embedded] == [32, 32, 6]


@pytest.mark.parametrize(
    ("sent", "asked"), [([5, 6], [(5, 6)]), ([[5], [6, 7]], [(5,), (6, 7)]), (["a", [5]], ["a", (5,)])]
)
async def test_inputs_may_be_the_encoders_tokens(running, sent, asked):
    answer = await running.http.post("/v1/embeddings", json={"model": ENCODER, "input": sent})
    assert running.service.embedded == [tuple(asked)]
    assert answer.json()["usage"]["prompt_tokens"] == sum(map(len, asked))


@pytest.mark.parametrize(("sent", "most"), [(None, None), (-1, None), (3, 3), (256, 256)])
async def test_inputs_are_read_from_their_beginning_as_far_as_asked(running, sent, most):
    body = {"model": ENCODER, "input": "a", "truncate_prompt_tokens": sent}
    assert (await running.http.post("/v1/embeddings", json=body)).status_code == 200
    assert running.service.most_tokens == most


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"input": [1, "a"]}, 400, "input[1]", "invalid_type"),
        ({"input": [[1, 2], [3, -1]]}, 400, "input[1][1]", "invalid_request"),
        ({"input": [[1], []]}, 400, "input[1]", "invalid_request"),
        ({"input": [True]}, 400, "input[0]", "invalid_type"),
        ({"input": [1], "model": CHAT}, 400, "model", "invalid_request"),
        ({"truncate_prompt_tokens": 2}, 400, "truncate_prompt_tokens", "invalid_request"),
        ({"truncate_prompt_tokens": 257}, 400, "truncate_prompt_tokens", "invalid_request"),
        ({"truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens", "invalid_request"),
        ({"input": []}, 400, "input", "invalid_request"),
        ({"input": ""}, 400, "input", "invalid_request"),
        ({"input": ["a", ""]}, 400, "input[1]", "invalid_request"),
        ({"input": ["a", None]}, 400, "input[1]", "invalid_type"),
        ({"input": {"a": 1}}, 400, "input", "invalid_type"),
        ({"input": ["a"] * 2049}, 400, "input", "invalid_request"),
        ({"dimensions": 64}, 400, "dimensions", "invalid_request"),
        ({"encoding_format": "hex"}, 400, "encoding_format", "invalid_type"),
        ({"model": "gpt-9"}, 404, "model", "model_not_found"),
        ({"colour": "red"}, 400, "colour", "unknown_field"),
    ],
)
async def test_bad_fields_are_named(running, fields, status, param, code):
    answer = await running.http.post("/v1/embeddings", json={"model": ENCODER, "input": "a", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
