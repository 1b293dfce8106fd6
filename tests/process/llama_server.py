"""A peer over llama.cpp: llama-cpp-python's real server writes the answers. `make test-upstream` runs this.

Its name keeps it out of `make test`, because llama.cpp is compiled for minutes first, into an environment of its own.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from nsllm.node.config import models_home
from nsllm.node.settings import load_config, save_config

pytestmark = [pytest.mark.timeout(900)]

BENCH_PYTHON = Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"
GGUF = models_home() / "bench" / "SmolLM2-135M-Instruct.Q8_0.gguf"
NAME = "smollm2-135m-q8_0"
CONTEXT_TOKENS = 1024
QUESTION = "Tell me a long story about a lighthouse."


@dataclass
class Server:
    """llama-cpp-python's server, which the test starts, kills and starts again."""

    port: int
    log: Path
    until: object
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(BENCH_PYTHON), "-m", "llama_cpp.server", "--model", str(GGUF), "--model_alias", NAME]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--n_ctx", str(CONTEXT_TOKENS)]
        command += ["--n_threads", "1", "--n_threads_batch", "1"]
        with self.log.open("ab") as output:
            self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output))
        self.until(lambda: httpx.get(f"{self.url}/v1/models").status_code == 200, "llama.cpp's server answers")

    def kill(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_port, until):
    assert GGUF.exists(), f"{GGUF} is missing: `make bench-setup` builds it"
    made = Server(free_port(), tmp_path_factory.mktemp("llama") / "server.log", until)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def peer(server, lay_out_tiny, tiny_models, tmp_path_factory):
    """The peer that is asked; its own models are tiny, and judge."""
    net = lay_out_tiny(tmp_path_factory.mktemp("front") / "net", tiny_models, peers=1, first_port=23000)
    config = load_config(net.places[0].data_dir)
    engine = replace(
        config.engine, upstream_url=server.url, upstream_model=NAME, max_tokens_default=16, upstream_between_tokens_s=60
    )
    save_config(replace(config, engine=engine))
    net.start(0)
    net.until_ready(0)
    yield net
    net.stop()


def text_of(peer, **fields):
    """An answer that is computed, whatever was asked before."""
    answer = peer.ask(0, QUESTION, **fields)
    assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # the server does not say
    (choice,) = answer["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def lines_of(stream):
    """Data of the events."""
    return (line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: "))


def streamed(peer, **fields):
    body = {"model": "default", "messages": [{"role": "user", "content": QUESTION}], "stream": True, **fields}
    return httpx.stream("POST", f"{peer.url(0)}/v1/chat/completions", json=body, headers=peer.headers, timeout=120)


def test_its_answer_is_passed_on_as_what_it_is(peer, server):
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}
    asked = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    assert text_of(peer, max_tokens=16, temperature=0)[0] == asked["choices"][0]["message"]["content"] != ""
    told = peer.status(0)["engine"]["text"]
    assert (told["name"], told["upstream"], told["dtype"]) == (NAME, True, "upstream")


def test_parameters_reach_it(peer):
    greedy = text_of(peer, max_tokens=24, temperature=0)
    assert greedy[1] == "length"
    # It takes these spellings, or it would answer with an error, or as if they were not there.
    assert text_of(peer, max_tokens=24, temperature=2, top_k=1) == greedy
    assert text_of(peer, max_tokens=24, temperature=0, top_k=0, top_p=0.9) == greedy
    assert text_of(peer, max_tokens=24, temperature=0, repetition_penalty=1.9)[0] != greedy[0]
    first_word = greedy[0].split()[0]
    rest = text_of(peer, max_tokens=24, temperature=0, stop=[greedy[0].split()[1]])
    assert (rest[0].strip(), rest[1]) == (first_word, "stop")
    seeded = [text_of(peer, max_tokens=16, temperature=1.5, top_k=0, seed=seed) for seed in (5, 6)]
    assert seeded[0] != seeded[1]


def test_an_answer_comes_in_pieces(peer):
    with streamed(peer, max_tokens=12, temperature=0) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        *chunks, end = lines_of(stream)
    assert end == "[DONE]"
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    texts = [choice["delta"].get("content") for choice in choices]
    assert len([text for text in texts if text]) > 6
    assert "".join(filter(None, texts)) == text_of(peer, max_tokens=12, temperature=0)[0]
    assert choices[-1]["finish_reason"] == "length"


def test_who_leaves_frees_the_server(peer, server):
    with streamed(peer, max_tokens=900, temperature=0) as stream:
        list(itertools.islice(lines_of(stream), 4))
    peer.until(lambda: "Disconnected from client" in server.log.read_text(), "the server is told")
    # It runs one generation at a time: this one would wait for the end of a forgotten one.
    assert text_of(peer, max_tokens=2, temperature=0)[1] == "length"
    assert peer.status(0)["engine"]["active"] == 0


def test_a_prompt_that_is_too_long_is_an_error_that_passes(peer):
    """The server raises after it has sent its headers: nothing says why."""
    refused = peer.post(0, "word " * 2 * CONTEXT_TOKENS)
    assert refused.status_code == 503, refused.text
    assert "before its first token" in refused.json()["error"]["message"]
    assert text_of(peer, max_tokens=2, temperature=0)[1] == "length"


def test_a_server_that_is_killed_in_mid_answer_ends_the_stream_with_an_error(peer, server):
    with streamed(peer, max_tokens=900, temperature=0) as stream:
        lines = lines_of(stream)
        list(itertools.islice(lines, 4))
        server.kill()
        *_, last = [json.loads(line) for line in lines if line != "[DONE]"]
    assert "the upstream broke off in mid-answer" in last["error"]["message"]
    assert peer.post(0, QUESTION).status_code == 503
    peer.until(lambda: peer.get(0, "/readyz").status_code == 503, "the loss is noticed")
    server.start()
    peer.until_ready(0)
    assert text_of(peer, max_tokens=2, temperature=0)[1] == "length"
