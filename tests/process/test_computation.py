"""Validators read each answer again: whatever was asked of the model fits, and what it did not say is worth nothing."""

from __future__ import annotations

import base64
import io
import os

import httpx
import pytest
from PIL import Image

from nsllm.governance.computation import PASS_PPM

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

TURNS = [
    {"role": "system", "content": "You are short."},
    {"role": "user", "content": "What is a bay?"},
    {"role": "assistant", "content": "Water, with land around most of it."},
    {"role": "user", "content": "And a cape?"},
]


def picture() -> str:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


HONEST = {
    "the card's sampling": {},
    "greedy": {"temperature": 0},
    "hot, with a seed": {"temperature": 1.5, "top_p": 1, "seed": 3},
    "cut off": {"temperature": 1, "top_k": 20, "min_p": 0.01, "top_p": 0.8, "seed": 4},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5, "temperature": 0},
    "biased": {"logit_bias": {"17": 5, "18": -100}, "seed": 5},
    "a stop": {"stop": ["e"], "seed": 6},
    "a schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "one", "schema": {"enum": ["north", "south"]}},
        },
        "max_tokens": 40,
    },
    "a regex": {"structured_outputs": {"regex": "[0-9]{2,3}"}},
    "a conversation": {"messages": TURNS},
    "a picture": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": picture()}},
                    {"type": "text", "text": "Which colour?"},
                ],
            }
        ]
    },
}


def computation(net, index: int, completion_id: str) -> int:
    """What the validators agreed on, ppm."""
    leaf = net.receipt(index, completion_id).json()["leaf"]
    return {score["name"]: score["ppm"] for score in leaf["scores"]}["computation"]


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_answer_fits_its_record_however_it_was_asked_for(tiny_net, case: str):
    fields = {"visibility": "public", **HONEST[case]}
    answer = tiny_net.ask(0, f"Where is {case}, {os.getpid()}?", **fields)
    assert answer["headers"]["x-nsllm-source"] == "engine"
    assert answer["nsllm"]["publication"] == "pending", answer["nsllm"]
    assert computation(tiny_net, 0, answer["id"]) > PASS_PPM


def test_a_text_that_is_merely_continued_fits_too(tiny_net):
    body = {"model": "default", "prompt": f"Once, {os.getpid()}", "max_tokens": 12, "visibility": "public"}
    answer = httpx.post(f"{tiny_net.url(0)}/v1/completions", json=body, headers=tiny_net.headers, timeout=180)
    assert answer.status_code == 200, answer.text
    assert computation(tiny_net, 0, answer.json()["id"]) > PASS_PPM


def test_an_edited_answer_is_certified_as_worth_nothing_and_nobody_reuses_it(tiny_net, tmp_path):
    net = tiny_net
    net.stop(3)
    net.start(3, faulty=("forging", "1", "1", str(tmp_path / "tap"), "engine"))
    net.until_ready(3)
    question = f"What is {os.getpid()} squared?"
    forged = net.ask(3, question, temperature=0)
    assert computation(net, 3, forged["id"]) < PASS_PPM
    net.until_level()
    again = net.ask(0, question, temperature=0)
    assert again["headers"]["x-nsllm-source"] == "engine"
    assert computation(net, 0, again["id"]) > PASS_PPM
    net.kill(3)
