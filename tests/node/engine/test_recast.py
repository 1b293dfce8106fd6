"""Models in other numbers: int8 runs as bfloat16 would, and what cannot be done is refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nsllm.node.engine import store
from nsllm.node.engine.about import read_runs
from nsllm.node.engine.backend import Read
from nsllm.node.engine.choice import choose, running_digest
from nsllm.node.engine.convert import main
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.fast.shape import is_int8, read_shape
from nsllm.node.engine.fetch import CANNOT_CONVERT
from nsllm.node.engine.models import model_digest, read_config
from nsllm.node.engine.recast import INT8, ConversionError, recast, scales, to_bfloat16, to_int8
from nsllm.node.engine.store import convert, find
from nsllm.node.engine.weights import read_weights
from nsllm.node.errors import ConfigError, ModelMissingError


def silent(*_progress):
    """A report that nobody reads."""


@pytest.fixture
def bf16(tiny, tmp_path):
    """The tiny model in bfloat16."""
    (tmp_path / "bf16").mkdir()
    recast(tiny.text, tmp_path / "bf16", "bfloat16", silent)
    return tmp_path / "bf16"


@pytest.fixture
def int8(bf16, tmp_path):
    (tmp_path / "int8").mkdir()
    recast(bf16, tmp_path / "int8", "int8", silent)
    return tmp_path / "int8"


def logits(folder, encoder, kernels, numerics="int8"):
    backend = FastBackend(folder, encoder, kernels, numerics, threads=1, cache_mb=1)
    cache = backend.open(list(range(40)), 64, side=False)
    return backend.forward([Read(cache, list(range(40)), 40)])[0].clone()


def test_int8_gives_the_very_logits_of_bfloat16_run_in_int8(bf16, int8, tiny, kernels):
    assert torch.equal(logits(int8, tiny.encoder, kernels), logits(bf16, tiny.encoder, kernels))
    assert read_weights(int8).size_bytes < 0.75 * read_weights(bf16).size_bytes


def test_a_scale_survives_the_way_there_and_back_whatever_the_largest_bfloat16_is():
    mantissas = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << np.uint32(16)).view(np.float32).reshape(-1, 1)
    first = scales(mantissas)
    again = scales(to_int8(mantissas).astype(np.float32) * first)
    assert (first == again).all()


def test_bfloat16_and_float32_hold_what_torch_makes(tiny, bf16, tmp_path):
    source = load_file(tiny.text / "model.safetensors")
    made = load_file(bf16 / "model.safetensors")
    assert made.keys() == source.keys()
    assert all(torch.equal(made[name], source[name].bfloat16()) for name in source)
    assert read_config(bf16)["dtype"] == "bfloat16"
    (tmp_path / "wide").mkdir()
    recast(bf16, tmp_path / "wide", "float32", silent)
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert all(torch.equal(wide[name], made[name].float()) for name in made)
    assert read_config(tmp_path / "wide")["dtype"] == "float32"


def test_int8_is_stored_as_compressed_tensors_does(int8, bf16):
    with safe_open(int8 / "model.safetensors", "pt") as file:
        weight, scale = (file.get_tensor(f"model.layers.1.mlp.down_proj.weight{tail}") for tail in ("", "_scale"))
        embedding = file.get_tensor("model.embed_tokens.weight")
    original = load_file(bf16 / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].float()
    assert (weight.dtype, weight.shape) == (torch.int8, original.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (original.shape[0], 1))
    assert int(weight.abs().max()) == 127
    assert float((weight * scale - original).abs().max()) <= float(scale.max()) / 2 * 1.001
    assert embedding.dtype == torch.bfloat16
    config = read_config(int8)
    assert config["quantization_config"] == INT8
    assert is_int8(config)
    assert read_shape(config) == read_shape(read_config(bf16))


@pytest.mark.parametrize(
    "change",
    [
        {"quant_method": "gptq"},
        {"format": "pack-quantized"},
        {"config_groups": {}},
        {"config_groups": {"group_0": {"weights": {**INT8["config_groups"]["group_0"]["weights"], "num_bits": 4}}}},
        {"config_groups": {"group_0": {"weights": None}}},
    ],
)
def test_other_quantization_is_not_taken_for_it(int8, change):
    config = read_config(int8)
    other = {**config, "quantization_config": {**INT8, **change}}
    assert not is_int8(other)
    assert read_shape(other) is None


def test_int8_runs_on_the_fast_path_only_under_a_digest_of_its_own(int8, bf16):
    choice = choose(int8, "auto")
    assert choice.dtype == "int8"
    assert choice.library is not None
    assert len({running_digest(int8, choice), running_digest(bf16, choice), model_digest(int8)}) == 3
    with pytest.raises(ConfigError, match="stored in int8, which only the fast path runs"):
        choose(int8, "general")


def test_several_files_stay_several_with_an_index(tiny, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny.text, source)
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    halves = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        halves[f"{'ab'[number % 2]}.safetensors"][name] = tensor.half()
    halves["a.safetensors"]["counts"] = torch.arange(3)
    for name, half in halves.items():
        save_file(half, source / name)
    seen = []
    recast(source, folder, "int8", lambda done, total: seen.append((done, total)))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert seen[-1][0] == seen[-1][1] == len(index["weight_map"])
    assert index["weight_map"]["model.layers.0.mlp.up_proj.weight_scale"] in {"a.safetensors", "b.safetensors"}
    assert torch.equal(load_file(folder / "a.safetensors")["counts"], torch.arange(3))
    assert read_weights(folder).dtypes[0] in {"I8", "BF16"}


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({"quantization_config": INT8}, "bfloat16", "quantized already"),
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
            "int8",
            "cannot be int8: that is for models that the fast path",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(tiny, tmp_path, changes, dtype, reason, capsys):
    source, folder = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny.text, source)
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ConversionError, match=reason):
        recast(source, folder, dtype, silent)
    assert main([str(source), str(folder), dtype]) == CANNOT_CONVERT
    assert reason in capsys.readouterr().err
    with pytest.raises(ModelMissingError, match=reason):
        convert(tmp_path / "home", source, tmp_path / "home" / "models" / "x", silent, dtype)
    assert find(tmp_path / "home", "x") is None


def test_float8_is_refused(tiny, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny.text, source)
    folder.mkdir()
    save_file({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, source / "more.safetensors")
    with pytest.raises(ConversionError, match="w is F8_E4M3"):
        recast(source, folder, "bfloat16", silent)


def test_a_converted_model_stands_in_the_store_whole_with_its_source(tiny, tmp_path):
    home = tmp_path / "home"
    about = convert(home, tiny.text, store.store_of(home) / "mine-int8", silent, "int8")
    assert (about.dtype, about.source) == ("int8", f"folder:{tiny.text.name} as int8")
    assert find(home, "mine-int8") is not None
    runs = read_runs(about, 64)
    assert runs is not None
    assert (runs.path, runs.dtype) == ("fast", "int8")
    assert 330 + 64 <= runs.memory_mb < 330 + 64 + 10
    assert [path.name for path in store.store_of(home).iterdir()] == ["mine-int8"]


def test_bfloat16_rounds_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -3.0], np.float32)
    assert to_bfloat16(values).tolist() == [0x3F80, 0x3F80, 0x3F82, 0xC040]
