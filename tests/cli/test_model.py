"""`nsllm model`: what each subcommand tells people and programs."""

from __future__ import annotations

import json
import os
import shutil

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from nsllm.cli.root import run
from nsllm.node.engine.models import model_digest
from nsllm.node.engine.tiny import build_tiny_models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("NSLLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def said(capsys):
    return json.loads(capsys.readouterr().out)


def test_a_model_is_added_listed_and_described(tiny, home, capsys):
    assert run(["model", "list", "--json"]) == 0
    assert said(capsys) == {"store": str(home / "models"), "models": []}
    assert run(["model", "add", str(tiny.text), "--name", "mine", "--json"]) == 0
    added = said(capsys)
    assert (added["name"], added["architecture"], added["left_out"]) == ("mine", "LlamaForCausalLM", [])
    assert run(["model", "list", "--json"]) == 0
    (row,) = said(capsys)["models"]
    runs = row.pop("runs")
    assert row == {key: value for key, value in added.items() if key != "left_out"}
    assert (runs["path"], runs["dtype"], runs["digest"]) == ("fast", "float32", row["digest"])
    assert 300 < runs["memory_mb"] < 2000
    assert run(["model", "info", "mine", "--json"]) == 0
    about = said(capsys)
    assert about["digest"] == "0x" + model_digest(tiny.text).hex()
    assert about["chat_template"] is True
    assert about["licence"] is None
    assert about["runs"] == runs


def test_people_read_the_same(tiny, home, capsys):
    assert run(["model", "add", str(tiny.text)]) == 0
    told = capsys.readouterr()
    assert 'use it: [engine] text_model = "tiny-random-llama"' in told.err
    assert run(["model", "info", "tiny-random-llama"]) == 0
    told = capsys.readouterr().out
    for line in ("LlamaForCausalLM", "256 tokens", "not stated", "chat template  yes", "float32 on the fast path"):
        assert line in told
    assert run(["model", "list"]) == 0
    assert "tiny-random-llama" in capsys.readouterr().out


def test_an_encoder_is_no_text_model(tiny, home, capsys):
    assert run(["model", "info", str(tiny.encoder), "--json"]) == 0
    about = said(capsys)
    assert (about["architecture"], about["chat_template"], about["runs"]) == ("BertModel", False, None)


def test_a_half_written_model_is_listed_as_such(tiny, home, capsys):
    shutil.copytree(tiny.text, home / "models" / "half")
    os.truncate(home / "models" / "half" / "model.safetensors", 9000)
    assert run(["model", "list", "--json"]) == 0
    (row,) = said(capsys)["models"]
    assert "its header says" in row["problem"]
    assert run(["model", "list"]) == 0
    assert "cannot be used" in capsys.readouterr().out
    assert run(["model", "info", "half"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["model", "info", "nowhere"], "model_missing"),
        (["model", "add", "a/b/c", "--link"], "usage_error"),
        (["model", "add", "/"], "model_missing"),
    ],
)
def test_faults_are_told_to_programs_too(home, capsys, arguments, code):
    assert run([*arguments, "--json"]) == 2
    assert said(capsys)["error"]["code"] == code


def test_a_gguf_file_that_is_none_leaves_nothing(home, tmp_path, capsys):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    assert run(["model", "convert", str(file), "--json"]) == 2
    assert said(capsys)["error"]["code"] == "model_missing"
    assert run(["model", "list", "--json"]) == 0
    assert said(capsys)["models"] == []


def test_a_model_is_converted_to_int8_and_never_to_int4(tiny, home, capsys):
    assert run(["model", "add", str(tiny.text), "--name", "mine"]) == 0
    capsys.readouterr()
    assert run(["model", "convert", "mine", "--dtype", "int8", "--json"]) == 0
    about = said(capsys)
    assert (about["name"], about["dtype"]) == ("mine-int8", "int8")
    assert run(["model", "info", "mine-int8", "--json"]) == 0
    assert said(capsys)["runs"]["dtype"] == "int8"
    assert run(["model", "convert", "mine", "--dtype", "int4", "--json"]) == 2
    assert "slower than this engine's int8" in said(capsys)["error"]["message"]
    assert run(["model", "convert", "nothing", "--json"]) == 2
    assert said(capsys)["error"]["code"] == "usage_error"


def test_what_stands_there_is_not_converted_over(home, tmp_path, capsys):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "there").mkdir()
    assert run(["model", "convert", str(file), str(tmp_path / "there"), "--json"]) == 2
    assert "is there already" in said(capsys)["error"]["message"]


def test_without_a_subcommand_it_helps(capsys):
    assert run(["model"]) == 0
    assert "convert" in capsys.readouterr().out
