"""A running peer takes another model in, answers with it, and lets it go: real processes, tiny models."""

from __future__ import annotations

import json
from dataclasses import replace

import psutil
import pytest

from nsllm.node.config import models_home
from nsllm.node.engine.store import add_folder
from nsllm.node.engine.tiny import build_tiny_models
from nsllm.node.settings import load_config, save_config

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]


@pytest.fixture
def net(lay_out_tiny, tiny_models, tmp_path, monkeypatch):
    """One peer with room for two small workers, and a store with two more models."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "kernels").symlink_to(models_home() / "kernels")
    for seed, name in ((1, "second"), (2, "third")):
        (tmp_path / name).mkdir()
        add_folder(home, build_tiny_models(tmp_path / name, seed=seed).text, name, lambda _progress: None)
    add_folder(home, tiny_models.encoder, "encoder", lambda _progress: None)
    monkeypatch.setenv("NSLLM_HOME", str(home))
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=1, first_port=23000)
    config = load_config(net.places[0].data_dir)
    save_config(replace(config, engine=replace(config.engine, cache_mb=64, memory_mb=1000)))
    net.start(0)
    yield net
    net.stop()


def test_models_come_and_go_while_a_peer_runs(net, nsllm, tiny_models, tmp_path):
    def model(*arguments):
        done = nsllm("model", *arguments, "--data-dir", str(net.places[0].data_dir), "--json")
        return done.returncode, json.loads(done.stdout)

    def names():
        return [row["id"] for row in net.get(0, "/v1/models").json()["data"]]

    def workers():
        children = psutil.Process(net.processes[0].pid).children()
        return [child for child in children if "nsllm.node.engine.worker" in child.cmdline()]

    net.until_ready(0)
    first, encoder = tiny_models.text.name, tiny_models.encoder.name
    assert names() == [first, encoder]
    refused = net.post(0, "Why?", model="second")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")

    status, row = model("load", "second")
    assert (status, row["state"], row["default"]) == (0, "ready", False), row
    assert names() == [first, "second", encoder]
    assert len(workers()) == 2
    same = {"seed": 1, "max_tokens": 24, "temperature": 0}
    answers = {name: net.ask(0, "Why is the sky blue?", model=name, **same) for name in (first, "second", "default")}
    texts = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
    assert texts["default"] == texts[first] != texts["second"]
    assert answers["second"]["model"] == "second"

    published = net.ask(0, "Why is grass green?", model="second", visibility="public", **same)
    receipt = net.receipt(0, published["id"]).json()
    assert row["digest"].removeprefix("0x") in json.dumps(receipt)

    status, error = model("load", "third")
    assert status != 0
    assert "of the budget of 1000 MB are left" in error["error"]["message"]
    status, error = model("load", "encoder")
    assert "writes no text" in error["error"]["message"]
    status, error = model("load", "fourth")
    assert "'second'" in error["error"]["message"]
    status, error = model("unload", first)
    assert "it judges answers, and stays" in error["error"]["message"]

    assert model("use", "second")[1]["default"]
    assert names() == ["second", first, encoder]
    again = net.ask(0, "Why is the sky blue?", **same)
    assert again["choices"][0]["message"]["content"] == texts["second"]
    engine = net.status(0)["engine"]
    assert (engine["text"]["name"], engine["scorer"]["name"]) == ("second", first)
    assert [row["model"]["name"] for row in engine["loaded"]] == ["second", first]
    metrics = net.get(0, "/metrics").text
    assert 'nsllm_request_success_total{finished_reason="length",model_name="second"}' in metrics

    assert model("unload", "second") == (0, {"id": "second", "object": "model", "deleted": True})
    assert names() == [first, encoder]
    assert len(workers()) == 1
    assert net.post(0, "Why?", model="second").status_code == 404
    assert net.ask(0, "Why is the sky blue?", **same)["choices"][0]["message"]["content"] == texts[first]

    assert model("load", "third")[0] == 0
    rows = model("loaded")[1]
    assert [(row["id"], row["removable"]) for row in rows["data"]] == [(first, False), ("third", True)]
    assert rows["budget_mb"] == 1000
