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
    ("fields", "status", "param", "code"),
    [
        ({"input": [1, 2, 3]}, 400, "input", "unsupported_parameter"),
        ({"input": [[1, 2], [3]]}, 400, "input", "unsupported_parameter"),
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
