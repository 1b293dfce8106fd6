"""Which path runs a model, and what it is called then."""

from __future__ import annotations

import json
import shutil

import pytest

from nsllm.node.engine import gpu
from nsllm.node.engine.choice import Choice, choose, kin_digests, packed_place, running_digest, text_digest
from nsllm.node.engine.devices import HERE, Devices
from nsllm.node.engine.fast import build as build_module
from nsllm.node.engine.models import ModelPaths, model_digest
from nsllm.node.errors import ConfigError, ModelMissingError


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """As on a machine without one; the result is what the test says of it."""
    said = {"gpu": False}
    monkeypatch.setattr("nsllm.node.engine.choice.has_gpu", lambda: said["gpu"])
    return said


@pytest.fixture
def stored_as(tiny, tmp_path):
    """A copy of the tiny model whose configuration is changed."""

    def make(**changes):
        folder = tmp_path / "model"
        shutil.copytree(tiny.text, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return make


def test_what_is_stored_in_16_bits_runs_in_int8_and_is_another_model(stored_as):
    folder = stored_as(dtype="bfloat16")
    fast, general = choose(folder, "auto"), choose(folder, "general")
    assert (fast.dtype, general) == ("int8", Choice("bfloat16", None))
    assert fast.library is not None
    assert fast.library.is_file()
    assert choose(folder, "fast") == fast
    assert running_digest(folder, general) == model_digest(folder) != running_digest(folder, fast)
    assert text_digest(ModelPaths(folder, folder)) == running_digest(folder, fast)
    assert text_digest(ModelPaths(folder, folder, "general")) == model_digest(folder)


def test_the_same_files_in_other_numbers_are_kin(stored_as):
    folder = stored_as(dtype="bfloat16")
    fast, general = choose(folder, "auto"), choose(folder, "general")
    assert kin_digests(folder, fast) == (running_digest(folder, general),)
    assert kin_digests(folder, general) == (running_digest(folder, fast),)


def test_what_is_stored_in_float32_runs_in_float32_on_either_path(tiny):
    fast = choose(tiny.text, "auto")
    assert fast.dtype == "float32"
    assert fast.library is not None
    assert running_digest(tiny.text, fast) == model_digest(tiny.text)


ONE, CPU, CUT = Devices("none", ("cuda:0",)), Devices("none", ("cpu",)), Devices("tensor", ("cuda:0", "cuda:1"))


@pytest.mark.parametrize(
    ("there", "wish", "devices", "path", "device"),
    [
        (True, "auto", HERE, "batched", "cuda:0"),
        (True, "fast", HERE, "fast", None),
        (True, "general", HERE, "general", None),
        (False, "auto", HERE, "fast", None),
        (False, "batched", HERE, "batched", "cpu"),
        (False, "auto", ONE, "batched", "cuda:0"),
        (False, "general", ONE, "general", None),
        (True, "auto", CPU, "general", None),
        (True, "batched", CPU, "batched", "cpu"),
        (True, "auto", CUT, "general", None),
    ],
)
def test_a_gpu_runs_the_batched_path(stored_as, no_gpu, there, wish, devices, path, device):
    no_gpu["gpu"] = there
    folder = stored_as(dtype="bfloat16")
    choice = choose(folder, wish, devices)
    assert (choice.path, choice.device) == (path, device)
    assert choice.dtype == ("int8" if path == "fast" else "bfloat16")
    assert (running_digest(folder, choice) == model_digest(folder)) is (path != "fast")
    assert text_digest(ModelPaths(folder, folder, wish, devices)) == running_digest(folder, choice)
    assert packed_place(folder, choice, model_digest(folder)) is None


def test_other_models_do_not_run_batched(stored_as, no_gpu):
    no_gpu["gpu"] = True
    folder = stored_as(hidden_act="gelu")
    assert choose(folder, "auto") == choose(folder, "auto", ONE) == Choice("float32", None)
    with pytest.raises(ConfigError, match=r"engine\.backend is batched, but cannot run .*not of the Llama family"):
        choose(folder, "batched")


def test_without_a_driver_nobody_is_asked_for_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "DRIVERS", (tmp_path / "nvidiactl",))
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_args, **_options: pytest.fail("asked"))
    assert gpu.has_gpu.__wrapped__() is False


def test_torch_says_whether_there_is_a_gpu(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(gpu, "DRIVERS", (tmp_path,))
    assert gpu.has_gpu.__wrapped__() is torch.cuda.is_available()
    monkeypatch.setattr(gpu.sys, "executable", str(tmp_path / "none"))
    assert gpu.has_gpu.__wrapped__() is False


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
        {"architectures": None},
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": "twice"}},
        {"rope_parameters": ["linear"]},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},  # beside other parameters
        {"partial_rotary_factor": 0.5},
        {"quantization_config": {"quant_method": "awq"}},
        {"sliding_window": 128},
        {"intermediate_size": 120},
        {"num_attention_heads": 3},
        {"hidden_size": "wide"},
        {"dtype": "float64"},
    ],
)
def test_other_models_take_the_general_path(stored_as, changes):
    folder = stored_as(**changes)
    assert choose(folder, "auto").library is None
    with pytest.raises(ConfigError, match=r"engine\.backend is fast"):
        choose(folder, "fast")


def test_without_a_compiler_the_general_path_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NSLLM_HOME", str(tmp_path))
    monkeypatch.setattr(build_module, "find_compiler", lambda: None)
    assert choose(tiny.text, "auto") == Choice("float32", None)
    with pytest.raises(ConfigError, match="no C compiler"):
        choose(tiny.text, "fast")


def test_a_compiler_that_fails_is_named_with_what_it_says(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NSLLM_HOME", str(tmp_path))
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no such target' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build_module, "find_compiler", lambda: str(compiler))
    with pytest.raises(ConfigError, match=r"cc cannot compile the fast path: no such target"):
        choose(tiny.text, "fast")
    assert not list((tmp_path / "kernels").glob("*.so"))


def test_kernels_are_built_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NSLLM_HOME", str(tmp_path))
    first = choose(tiny.text, "auto").library
    assert first.parent == tmp_path / "kernels"
    monkeypatch.setattr(build_module, "find_compiler", lambda: pytest.fail("built again"))
    assert choose(tiny.text, "auto").library == first


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelMissingError, match="none"):
        choose(tmp_path / "none", "auto")
