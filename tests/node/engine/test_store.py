"""Models that a user adds: whole or not there, and never with code of their own."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from nsllm.node.engine import store
from nsllm.node.engine.about import About, read_about, read_licence
from nsllm.node.engine.models import MARKER, is_complete, model_digest
from nsllm.node.engine.store import Broken, add_folder, check_no_code, chosen, find, list_models
from nsllm.node.engine.weights import read_weights
from nsllm.node.errors import ModelMissingError
from nsllm.node.settings import load_config

CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none-of-these\n"


def silent(_progress):
    """A report that nobody reads."""


@pytest.fixture
def source(tiny, tmp_path):
    """A model folder as people have them: with a card, a pickle and a script beside the weights."""
    folder = tmp_path / "My-Model"
    shutil.copytree(tiny.text, folder)
    (folder / MARKER).unlink(missing_ok=True)
    (folder / "README.md").write_text(CARD)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "train.py").write_text("raise SystemExit\n")
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def test_a_folder_is_copied_described_and_named(tiny, source, home):
    seen = []
    added = add_folder(home, source, "mine", seen.append)
    folder = home / "models" / "mine"
    assert added.left_out == ("pytorch_model.bin", "train.py")
    assert not (folder / "pytorch_model.bin").exists()
    assert model_digest(folder) == model_digest(tiny.text)
    weights = read_weights(tiny.text)
    assert added.about == About(
        name="mine",
        folder=str(folder),
        architecture="LlamaForCausalLM",
        parameters=weights.parameters,
        dtype="float32",
        context_tokens=256,
        digest="0x" + model_digest(tiny.text).hex(),
        licence="apache-2.0",
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        chat_template=True,
        source=f"folder:{source}",
    )
    assert weights.dtypes == ("F32",)
    assert weights.parameters * 4 < weights.size_bytes < weights.parameters * 4 + 10_000
    assert [seen[0].done < seen[-1].done, seen[-1].done] == [True, seen[-1].total]
    assert find(home, "mine") == folder
    assert list_models(home) == [added.about]
    assert sorted(path.name for path in (home / "models").iterdir()) == ["mine"]


def test_links_leave_the_files_where_they_are(source, home):
    added = add_folder(home, source, "linked", silent, link=True)
    file = home / "models" / "linked" / "model.safetensors"
    assert file.is_symlink()
    assert file.resolve() == source / "model.safetensors"
    assert added.about.digest == read_about(source).digest
    (source / "model.safetensors").unlink()
    assert find(home, "linked") is None
    (row,) = list_models(home)
    assert isinstance(row, Broken)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "model.gguf is a GGUF file"),
        (lambda f: (f / "model.safetensors").unlink(), "pytorch_model.bin is a pickle"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: os.truncate(f / "model.safetensors", 20_000), "its header says"),
        (lambda f: os.truncate(f / "model.safetensors", 4), "cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04" + bytes(100)), "no safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]"), "no safetensors file"),
        (lambda f: (f / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Tokenizer"]}}'),
         r"tokenizer_config.json wants to run code .*evil\.Tokenizer"),
        (lambda f: (f / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}'), "evil.Model"),
        (lambda f: (f / "processor_config.json").write_text("{"), "processor_config.json is not JSON"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-2.safetensors"}}'),
         "lacks tensor 'x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_and_nothing_appears(source, home, harm, match):
    harm(source)
    with pytest.raises(ModelMissingError, match=match):
        add_folder(home, source, "mine", silent)
    assert find(home, "mine") is None
    assert list_models(home) == []


def test_a_name_is_given_once(source, home):
    add_folder(home, source, "mine", silent)
    before = list_models(home)
    with pytest.raises(ModelMissingError, match="is there already"):
        add_folder(home, source, "mine", silent)
    assert list_models(home) == before


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a" * 97, "ü"])
def test_a_name_cannot_lead_out_of_the_store(source, home, name):
    with pytest.raises(ModelMissingError, match="no name for a model"):
        add_folder(home, source, name, silent)
    assert find(home, name) is None


def test_what_was_left_half_done_is_begun_again(source, home, monkeypatch):
    def breaks(_source, _target):
        raise KeyboardInterrupt
        yield 1

    with monkeypatch.context() as patch:
        patch.setattr(store, "_copied", breaks)
        with pytest.raises(KeyboardInterrupt):
            add_folder(home, source, "mine", silent)
    part = home / "models" / ".part-mine"
    assert part.is_dir()
    (part / "from-another.safetensors").write_bytes(b"x")
    assert list_models(home) == []
    assert find(home, "mine") is None
    add_folder(home, source, "mine", silent)
    assert not part.exists()
    assert not (home / "models" / "mine" / "from-another.safetensors").exists()


def test_too_little_space_is_said_before_anything_is_copied(source, home, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(ModelMissingError, match="0 MB are free"):
        add_folder(home, source, "mine", silent)
    assert list((home / "models" / ".part-mine").iterdir()) == []


def test_only_files_of_a_model_are_chosen():
    names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "onnx/model.onnx",
        "x.py",
        ".gitattributes",
        "LICENSE",
    ]
    kept, left_out = chosen(names, "here")
    assert kept == ("LICENSE", "config.json", "model.safetensors", "tokenizer.json")
    assert left_out == ("onnx/model.onnx", "x.py")


def test_a_vocabulary_is_not_parsed_for_code(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "x" * (2 << 20)}))
    check_no_code(tmp_path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD, "apache-2.0"),
        ("# no front matter\nlicense: mit\n", None),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("---\ntags:\n- x\n---\n", None),
    ],
)
def test_the_licence_is_what_the_card_states(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == licence


def test_settings_take_a_name_of_the_store(source, home, tmp_path, monkeypatch):
    monkeypatch.setenv("NSLLM_HOME", str(home))
    add_folder(home, source, "mine", silent)
    data = tmp_path / "peer"
    data.mkdir()
    (data / "config.toml").write_text('[engine]\ntext_model = "mine"\nencoder_model = "not-there"\n')
    config = load_config(data)
    assert config.engine.text_model == home / "models" / "mine"
    assert config.engine.encoder_model == data / "not-there"
    (data / "mine").mkdir()  # a folder beside the file comes first
    assert load_config(data).engine.text_model == data / "mine"
    (data / "config.toml").write_text('genesis = "mine"\n[engine]\ntext_model = "x/mine"\n')
    assert load_config(data).engine.text_model == data / "x" / "mine"
    assert load_config(data).genesis == data / "mine"


def test_an_unmarked_folder_in_the_store_is_listed_and_then_known(tiny, home):
    folder = home / "models" / "by-hand"
    shutil.copytree(tiny.text, folder)
    (folder / MARKER).unlink(missing_ok=True)
    assert [row.name for row in list_models(home)] == ["by-hand"]
    assert is_complete(folder)
