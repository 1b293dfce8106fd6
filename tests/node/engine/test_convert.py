"""GGUF to safetensors: names, rotary order, rounding, tokenizer; as transformers reads the result."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nsllm.node.engine import convert
from nsllm.node.engine.fetch import CANNOT_CONVERT

HEADS, KV_HEADS, HIDDEN, FFN = 4, 2, 64, 48
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "1", "2", "12", "Ġ", "Ã", "©"]


def llama_cpp_order(weight, heads):
    """What llama.cpp's converter does to query and key weights (`LlamaModel.permute`)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, weights, *, architecture="llama", pre="smollm"):
    writer = GGUFWriter(path, architecture)
    for name, value in {"block_count": 1, "context_length": 64, "embedding_length": HIDDEN}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.feed_forward_length", FFN)
    writer.add_uint32("llama.attention.head_count", HEADS)
    writer.add_uint32("llama.attention.head_count_kv", KV_HEADS)
    writer.add_uint32("llama.vocab_size", len(TOKENS))
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 100_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "1 2"])
    for name, value in {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", value)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def weights():
    numbers = np.random.default_rng(1)

    def random(*shape):
        return numbers.standard_normal(shape).astype(np.float32)

    head_dim = HIDDEN // HEADS
    return {
        "token_embd.weight": random(len(TOKENS), HIDDEN),
        "output_norm.weight": random(HIDDEN),
        "blk.0.attn_norm.weight": random(HIDDEN),
        "blk.0.ffn_norm.weight": random(HIDDEN),
        "blk.0.attn_q.weight": random(HIDDEN, HIDDEN),
        "blk.0.attn_k.weight": random(KV_HEADS * head_dim, HIDDEN),
        "blk.0.attn_v.weight": random(KV_HEADS * head_dim, HIDDEN),
        "blk.0.attn_output.weight": random(HIDDEN, HIDDEN),
        "blk.0.ffn_gate.weight": random(FFN, HIDDEN),
        "blk.0.ffn_up.weight": random(FFN, HIDDEN),
        "blk.0.ffn_down.weight": random(HIDDEN, FFN),
    }


@pytest.fixture
def folder(tmp_path, weights):
    stored = dict(weights)
    stored["blk.0.attn_q.weight"] = llama_cpp_order(weights["blk.0.attn_q.weight"], HEADS)
    stored["blk.0.attn_k.weight"] = llama_cpp_order(weights["blk.0.attn_k.weight"], KV_HEADS)
    write_gguf(tmp_path / "m.gguf", stored)
    (tmp_path / "out").mkdir()
    assert convert.main([str(tmp_path / "m.gguf"), str(tmp_path / "out"), "bfloat16"]) == 0
    return tmp_path / "out"


def test_every_weight_arrives_in_its_place(folder, weights, capfd):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    assert model.dtype == torch.bfloat16
    names = {**convert.LAYER_NAMES, **convert.OUTER_NAMES}
    state = model.state_dict()
    for name, value in weights.items():
        where = f"model.layers.0.{names[name.split('.')[2]]}" if name.startswith("blk") else names[name.split(".")[0]]
        assert torch.equal(state[f"{where}.weight"], torch.from_numpy(value).bfloat16()), name
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert "newly initialized" not in capfd.readouterr().err
    assert model.config.rope_parameters["rope_theta"] == 100_000.0
    assert model.config.rms_norm_eps == 1e-5
    assert model.generation_config.temperature == 0.2
    assert model.generation_config.top_p == 0.9


def test_the_tokenizer_splits_digits_and_knows_bytes(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab12")["input_ids"] == [5, 6, 7]  # the merge "1 2" never happens across single digits
    assert tokenizer("é<|im_end|>")["input_ids"] == [10, 11, 2]
    assert tokenizer.decode([10, 11, 5]) == "éab"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


def test_conversion_is_the_same_every_time(folder, tmp_path):
    (tmp_path / "again").mkdir()
    convert.convert(tmp_path / "m.gguf", tmp_path / "again", lambda _done, _total: None)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


def test_other_numbers_than_bfloat16(folder, weights, tmp_path):
    for dtype in ("float32", "int8"):
        (tmp_path / dtype).mkdir()
        assert convert.main([str(tmp_path / "m.gguf"), str(tmp_path / dtype), dtype]) == 0
    wide = load_file(tmp_path / "float32" / "model.safetensors")
    assert torch.equal(wide["model.embed_tokens.weight"], torch.from_numpy(weights["token_embd.weight"]))
    assert json.loads((tmp_path / "float32" / "config.json").read_text())["dtype"] == "float32"
    whole = load_file(tmp_path / "int8" / "model.safetensors")
    exact = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
    name = "model.layers.0.mlp.down_proj.weight"
    assert float((whole[name] * whole[f"{name}_scale"] - exact).abs().max()) < float(exact.abs().max()) / 127
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_rounding_is_that_of_torch(values):
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert convert.to_bfloat16(array).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "tekken"}, "of the kind 'tekken', expected 'llama', or 'gpt2' of one of 'smollm', 'gpt-2'"),
        ({"extra": "blk.0.attn_sinks.weight"}, "has no place"),
        ({"extra": "rope_freqs.weight"}, "not what Llama 3.1 to 3.3 have"),
    ],
)
def test_other_files_are_refused(tmp_path, weights, capsys, change, said):
    if "extra" in change:
        weights[change.pop("extra")] = np.full(HIDDEN, 2, np.float32)
    write_gguf(tmp_path / "m.gguf", weights, **change)
    (tmp_path / "out").mkdir()
    assert convert.main([str(tmp_path / "m.gguf"), str(tmp_path / "out"), "bfloat16"]) == CANNOT_CONVERT
    assert said in capsys.readouterr().err
