"""A peer whose answers another peer writes, as it would over vLLM: two processes, HTTP between them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nsllm.node.settings import load_config, save_config

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]


@pytest.fixture
def back(lay_out_tiny, tiny_models, tmp_path):
    """The peer that computes."""
    net = lay_out_tiny(tmp_path / "back", tiny_models, peers=1, first_port=19000)
    net.start(0)
    yield net
    net.stop()


@pytest.fixture
def front(back, lay_out_tiny, tiny_models, tmp_path):
    """The peer that is asked: a network of its own, with `back` as its upstream."""
    net = lay_out_tiny(tmp_path / "front", tiny_models, peers=1, first_port=21000)
    config = load_config(net.places[0].data_dir)
    engine = replace(
        config.engine, upstream_url=f"{back.url(0)}/v1", upstream_model=tiny_models.text.name, upstream_first_token_s=30
    )
    save_config(replace(config, engine=engine))
    net.start(0)
    yield net
    net.stop()


def test_an_answer_from_elsewhere_is_certified_here_as_what_it_is(back, front, nsllm, tmp_path):
    back.until_ready(0)
    front.until_ready(0)
    answer = front.ask(0, "Why is the sky blue?", max_tokens=12, seed=3, visibility="public")
    assert answer["choices"][0]["message"]["content"]
    assert 0 < answer["usage"]["completion_tokens"] <= 12
    assert answer["usage"]["prompt_tokens"] > 12
    engine = front.status(0)["engine"]
    assert engine["text"]["upstream"]
    assert engine["scorer"]["digest"] == back.status(0)["engine"]["text"]["digest"] != engine["text"]["digest"]

    receipt = tmp_path / "r.json"
    receipt.write_text(front.receipt(0, answer["id"], "anchored").text)
    verified = nsllm("verify", str(receipt), "--genesis", str(front.genesis), "--require", "anchored", "--json")
    assert verified.returncode == 0, verified.stderr
    assert "an upstream server wrote the answer" in verified.stdout
    # The peer behind it was asked in private: it has published nothing.
    assert back.status(0)["logs"]["network_log_size"] == 0

    back.stop(0)
    refused = front.post(0, "And why is grass green?")
    assert refused.status_code == 503, refused.text
    assert "upstream" in refused.json()["error"]["message"]
    front.until(lambda: front.status(0)["engine"]["state"] == "restarting", "the loss is noticed")
    assert front.get(0, "/readyz").status_code == 503
    back.start(0)
    front.until_ready(0)
    assert front.post(0, "And why is grass green?").status_code == 200
