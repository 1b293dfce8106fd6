"""Pictures and tables through real peers: described for a model that reads, seen by one that sees."""

from __future__ import annotations

import base64
import io
import json
from hashlib import sha256

import psutil
import pytest
from PIL import Image, ImageDraw, ImageFont

from nsllm.node.engine.models import ModelPaths
from nsllm.node.engine.tiny_vision import build_tiny_idefics

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

ASK = {"max_tokens": 12, "temperature": 0, "seed": 1}


def sign(text: str) -> bytes:
    image = Image.new("RGB", (300, 80), "white")
    ImageDraw.Draw(image).text((20, 20), text, fill="black", font=ImageFont.load_default(36))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def content(*files: bytes) -> list[dict]:
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in files]
    return [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": "What?"}]


def named(data: bytes) -> str:
    return "0x" + sha256(data).hexdigest()


def reader(net, index: int) -> list[psutil.Process]:
    """The peer's attachment worker, if it runs."""
    children = psutil.Process(net.processes[index].pid).children()
    return [child for child in children if "nsllm.node.attachments.worker" in child.cmdline()]


def request_of(net, completion_id: str) -> dict:
    return net.receipt(0, completion_id).json()["signed"]["record"]["request"]


def test_a_picture_is_described_published_by_digest_and_found_again(tiny_net, nsllm, tmp_path):
    net, first, second = tiny_net, sign("EXIT 4711"), sign("EXIT 4712")
    file = tmp_path / "exit.png"
    file.write_bytes(first)
    arguments = ["--image", str(file), "--api", net.url(0), "--visibility", "public", "--max-tokens", "12"]
    said = nsllm("ask", "What?", *arguments, "--temperature", "0", "--seed", "1", "--json")
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    note = {"digest": named(first), "kind": "image", "how": "ocr+labels", "name": ""}
    assert told["attachments"] == [note]
    request = request_of(net, told["id"])
    assert request["attachments"] == [named(first)]
    asked = request["messages"][0]["content"]
    assert asked.startswith("[Image 1: 300x80 PNG.\nText in it:\nEXIT 4711")
    assert asked.endswith("]\n\nWhat?")

    same = net.post(0, content(first), visibility="public", **ASK).json()
    assert (same["nsllm"]["source"], same["nsllm"]["attachments"]) == ("cache", [note])
    other = net.post(0, content(second), visibility="public", **ASK).json()
    assert (other["nsllm"]["source"], other["nsllm"]["attachments"][0]["digest"]) == ("engine", named(second))


def test_a_peer_survives_its_attachment_worker(tiny_net):
    net = tiny_net
    net.post(1, content(sign("ONE")), visibility="private", **ASK).raise_for_status()
    (worker,) = reader(net, 1)
    worker.kill()
    worker.wait()
    answer = net.post(1, content(sign("TWO")), visibility="private", **ASK)
    assert answer.json()["nsllm"]["attachments"][0]["how"] == "ocr+labels"
    (other,) = reader(net, 1)
    assert other.pid != worker.pid
    bomb = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(bomb, "PNG")
    refused = net.post(1, content(bomb.getvalue()), **ASK)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages[0].content[0].image_url"
    assert [each.pid for each in reader(net, 1)] == [other.pid]


def test_a_model_that_sees_gets_the_picture_itself(lay_out_tiny, tiny_models, tmp_path):
    models = ModelPaths(text=build_tiny_idefics(tmp_path), encoder=tiny_models.encoder)
    net = lay_out_tiny(tmp_path / "net", models, peers=1, first_port=13000)
    try:
        net.all_up()
        first, second = sign("ONE"), sign("TWO")
        answers = [net.post(0, content(data), visibility="public", **ASK).json() for data in (first, second)]
        notes = [answer["nsllm"]["attachments"] for answer in answers]
        assert notes == [
            [{"digest": named(data), "kind": "image", "how": "native", "name": ""}] for data in (first, second)
        ]
        requests = [request_of(net, answer["id"]) for answer in answers]
        assert requests[0]["messages"] == requests[1]["messages"]
        assert [request["attachments"] for request in requests] == [[named(first)], [named(second)]]
    finally:
        net.stop()
