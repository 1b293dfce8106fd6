"""GGUF files of the whole Llama family: the converted model computes and reads as the one that the file was made of."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from nsllm.node.engine import convert
from nsllm.node.engine.fast.chat import ChatText

MERGES = ["1 2", "12 3", "3 4", "a b", "Ġ a", "Ġa b", "' S", "Ċ Ċ", "e Ì", "eÌ ģ", "Ã ©"]
TOKENS = [
    *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "whole",
    "<|begin|>", "<|im_end|>", "<|eot|>", "<tool_call>",
]  # fmt: skip
BEGIN, END, TURN_END = (TOKENS.index(token) for token in ("<|begin|>", "<|im_end|>", "<|eot|>"))
TEXTS = [
    "1234 12345 a1b", "ab  ab\n\nab \t ", "it'S e\u0301é!?\r\n...", "世界 42½", "whole wholes",
    "x<|im_end|>ab<tool_call>1",
]  # fmt: skip
BASE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
KINDS = {
    "llama": ("LlamaConfig", {"head_dim": 32, "rope_parameters": LLAMA3}, "llama-bpe"),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}, "qwen2"),
    "qwen3": ("Qwen3Config", {"head_dim": 32}, "qwen2"),
}


def made(kind):
    """A random model in which no norm and no bias is trivial."""
    name, changes, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**{**BASE, **changes})).float().eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                torch.nn.init.uniform_(parameter, 0.2, 1.8)
    return model


def llama_cpp_order(weight, heads):
    """What llama.cpp's converter does to query and key weights (`LlamaModel.permute`)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def slowed(head_dim, rope):
    """What llama.cpp's converter makes of Llama 3.1's parameters (`LlamaModel.generate_extra_tensors`)."""
    factors = []
    for turn in 1 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim):
        length, trained = 2 * np.pi / turn, rope["original_max_position_embeddings"]
        if length < trained / rope["high_freq_factor"]:
            factors.append(1.0)
        elif length > trained / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (trained / length - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def write(path, kind, pre, model=None, **fields):
    """A GGUF file with names as gguf-py gives them."""
    writer = gguf.GGUFWriter(path, kind)
    config = (model or made(kind)).config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    types = [gguf.TokenType.NORMAL] * (len(TOKENS) - 4) + [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED]
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    state = {} if model is None else model.state_dict()
    if model is None:
        state["model.embed_tokens.weight"] = torch.zeros(len(TOKENS), config.hidden_size)
    for name, value in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy()
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            array = llama_cpp_order(array, config.num_attention_heads // (1 if "q_proj" in name else 2))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", slowed(config.head_dim, config.rope_parameters))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(tmp_path, kind, pre, model=None, **fields):
    write(tmp_path / "m.gguf", kind, pre, model, **fields)
    folder = tmp_path / "out"
    folder.mkdir()
    convert.convert(tmp_path / "m.gguf", folder, lambda _done, _total: None, "float32")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_the_same(tmp_path, kind, capfd):
    theirs = made(kind)
    folder = converted(tmp_path, kind, KINDS[kind][2], theirs)
    ours = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert "newly initialized" not in capfd.readouterr().err
    wanted = theirs.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in ours.state_dict().items())
    tokens = torch.arange(100)[None] % len(TOKENS)
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize(("pre", "kind"), [("qwen2", "Qwen2Tokenizer"), ("gpt-2", "GPT2Tokenizer")])
def test_text_is_read_as_by_the_models_own_tokenizer(tmp_path, pre, kind):
    ours = Tokenizer.from_file(str(converted(tmp_path, "qwen2", pre) / "tokenizer.json"))
    merges = [tuple(merge.split()) for merge in MERGES]
    theirs = getattr(transformers, kind)(vocab={token: i for i, token in enumerate(TOKENS)}, merges=merges)
    theirs.add_special_tokens({"additional_special_tokens": TOKENS[-4:-1]})
    theirs.add_tokens(TOKENS[-1:])
    for text in TEXTS:
        tokens = ours.encode(text).ids
        assert tokens == theirs(text)["input_ids"], text
        assert ours.decode(tokens, skip_special_tokens=False) == theirs.decode(tokens), text


def test_llama_3_reads_numbers_in_threes_and_whole_tokens_first_and_begins_texts(tmp_path):
    text = ChatText(converted(tmp_path, "llama", "llama-bpe"))
    numbers = {token: i for i, token in enumerate(TOKENS)}
    assert text.tokens("1234") == [numbers["123"], numbers["4"]]
    assert text.tokens("whole") == [numbers["whole"]]  # no merge makes it
    assert text.tokens("it'Sab") == [numbers["i"], numbers["t"], numbers["'S"], numbers["ab"]]
    assert text.text_tokens("ab") == [BEGIN, numbers["ab"]]


def test_a_file_may_deny_the_beginning_and_name_the_end_of_a_turn(tmp_path):
    folder = converted(tmp_path, "llama", "llama-bpe", add_bos_token=False, eot_token_id=TURN_END)
    text = ChatText(folder)
    assert text.text_tokens("ab") == text.tokens("ab")
    assert text.end_token_ids == {END, TURN_END}
    assert text.template is None
