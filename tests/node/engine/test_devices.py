"""Where a text model runs: what settings may say, and what a process is made to see."""

from __future__ import annotations

import json

import pytest

from nsllm.node.engine.devices import HERE, Devices
from nsllm.node.engine.link import patience_s
from nsllm.node.errors import ConfigError

LLAMA = {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 96}


@pytest.mark.parametrize(
    ("parallel", "names", "ranks"),
    [
        ("none", (), 1),
        ("none", ("cpu",), 1),
        ("none", ("cuda:3",), 1),
        ("pipeline", ("cpu",), 1),
        ("pipeline", ("cuda:0", "cuda:1", "cuda:2"), 1),
        ("tensor", ("cpu", "cpu"), 2),
        ("tensor", ("cuda:1", "cuda:0"), 2),
    ],
)
def test_devices_that_fit_each_other(parallel, names, ranks):
    assert Devices(parallel, names).ranks == ranks


@pytest.mark.parametrize(
    ("parallel", "names", "said"),
    [
        ("none", ("cuda:0", "cuda:1"), "expected at most one"),
        ("none", ("gpu",), "names 'gpu'"),
        ("none", ("cuda",), "names 'cuda'"),
        ("pipeline", (), "is empty: expected GPUs, or the CPU once"),
        ("pipeline", ("cpu", "cpu"), "expected GPUs, or the CPU once"),
        ("pipeline", ("cuda:0", "cpu"), "mixes GPUs and the CPU"),
        ("tensor", ("cpu", "cuda:0"), "mixes GPUs and the CPU"),
        ("tensor", ("cuda:0",), "expected two or more"),
        ("tensor", (), "expected two or more"),
        ("tensor", ("cuda:0", "cuda:0"), "names a GPU twice"),
    ],
)
def test_devices_that_do_not(parallel, names, said):
    with pytest.raises(ConfigError, match=said):
        Devices(parallel, names)


@pytest.mark.parametrize(
    ("names", "inherited", "visible"),
    [
        (("cuda:2", "cuda:0"), {}, "2,0"),
        (("cuda:1", "cuda:0"), {"CUDA_VISIBLE_DEVICES": "4, GPU-8f"}, "GPU-8f,4"),
        (("cpu", "cpu"), {"CUDA_VISIBLE_DEVICES": "0"}, ""),
    ],
)
def test_a_process_sees_its_gpus_only(names, inherited, visible):
    devices = Devices("tensor", names)
    assert devices.environment(inherited) == {"CUDA_VISIBLE_DEVICES": visible}
    assert devices.local(1) == ("cuda:1" if "cuda:0" in names else "cpu")


def test_where_nothing_is_said_nothing_is_hidden():
    assert HERE.environment({"CUDA_VISIBLE_DEVICES": "1"}) == {}


def test_a_number_beyond_the_visible_gpus_is_refused():
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES is '0,1'"):
        Devices("none", ("cuda:2",)).environment({"CUDA_VISIBLE_DEVICES": "0,1"})


def test_a_path_that_cannot_be_placed_or_spread_is_refused():
    HERE.check_path("fast")
    Devices("none", ("cuda:0",)).check_path("batched")
    Devices("tensor", ("cpu", "cpu")).check_path("auto")
    with pytest.raises(ConfigError, match=r"engine\.backend is fast, and engine\.devices is set"):
        Devices("pipeline", ("cuda:0",)).check_path("fast")
    with pytest.raises(ConfigError, match=r"engine\.backend is batched, engine\.parallel is tensor"):
        Devices("tensor", ("cpu", "cpu")).check_path("batched")


def test_a_model_that_cannot_be_cut_evenly_is_refused_before_it_is_loaded():
    Devices("tensor", ("cpu",) * 4).check_model(LLAMA)
    with pytest.raises(ConfigError, match=r"into 3 equal parts: num_key_value_heads = 4"):
        Devices("tensor", ("cpu",) * 3).check_model(LLAMA)
    Devices("pipeline", ("cuda:0", "cuda:1", "cuda:2")).check_model(LLAMA)


def test_spreading_needs_accelerate(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    HERE.check_model(LLAMA)
    with pytest.raises(ConfigError, match="needs accelerate") as refused:
        Devices("pipeline", ("cpu",)).check_model(LLAMA)
    assert "nsllm[gpus]" in refused.value.hint


@pytest.fixture
def passes(general):
    """Logits of a prompt read in two pieces and a token after it, under a model."""
    from nsllm.node.engine.backend import Read
    from nsllm.node.engine.general import CausalModel

    def run(model: CausalModel):
        cache = model.open()
        return [
            model.forward([Read(cache, ids, keep)])[0]
            for ids, keep in ((list(range(4, 30)), 0), (list(range(30, 50)), 3), ([7], 1))
        ]

    return run


def test_a_pipeline_gives_the_same_logits(tiny, passes, tmp_path):
    """With accelerate's hooks between its layers: half of them are fetched from the disk when their turn comes."""
    import torch

    from nsllm.node.engine.general import CausalModel

    layers = json.loads((tiny.text / "config.json").read_bytes())["num_hidden_layers"]
    spread = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    spread |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(layers)}
    alone = passes(CausalModel(tiny.text))
    devices = Devices("pipeline", ("cpu",))
    for model in (
        CausalModel(tiny.text, devices),
        CausalModel(tiny.text, devices, device_map=spread, offload_folder=tmp_path),
    ):
        assert all(torch.equal(a, b) for a, b in zip(alone, passes(model), strict=True))


def test_a_model_without_a_plan_for_ranks_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from nsllm.node.engine.general import CausalModel

    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no plan for cutting"):
        CausalModel(tmp_path, Devices("tensor", ("cpu", "cpu")))


def test_a_large_model_is_waited_for_longer(tmp_path):
    assert patience_s(tmp_path) == 180
    for name in ("a", "b"):
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.truncate(50 << 30)  # holes: nothing is written
    assert patience_s(tmp_path) == 180 + 2 * 1024
