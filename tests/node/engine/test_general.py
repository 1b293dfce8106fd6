"""The general path gives, token for token, what `generate` gives, whatever the architecture."""

from __future__ import annotations

import pytest
import torch

from nsllm.node.engine.backend import Read
from nsllm.node.engine.general import CausalModel

WIDE = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
KINDS = {
    "llama": ("LlamaConfig", WIDE),
    "qwen2": ("Qwen2Config", WIDE),
    "mistral": ("MistralConfig", {**WIDE, "sliding_window": None}),
    "mistral, sliding window": ("MistralConfig", {**WIDE, "sliding_window": 16}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 260, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    ),
}
PROMPT = [(7 * i * i + 3) % 260 for i in range(50)]
NEW_TOKENS = 60


def saved(folder, kind):
    """A random float32 model in `folder`; transformers' own instance of it."""
    import transformers

    name, fields = KINDS[kind]
    config = getattr(transformers, name)(**fields, bos_token_id=1, eos_token_id=3, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [50, 7])
def test_greedy_tokens_are_those_of_generate(tmp_path, kind, piece):
    theirs = saved(tmp_path, kind)
    with torch.inference_mode():
        wanted = theirs.generate(
            torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(PROMPT) :].tolist()
    ours = CausalModel(tmp_path)
    cache = ours.open()
    for start in range(0, len(PROMPT), piece):
        part = PROMPT[start : start + piece]
        (logits,) = ours.forward([Read(cache, part, int(start + len(part) == len(PROMPT)))])
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < NEW_TOKENS:
        (logits,) = ours.forward([Read(cache, tokens[-1:], 1)])
        tokens.append(int(logits[-1].argmax()))
    assert tokens == wanted
    assert len(set(tokens)) > 3  # no model that says one thing only


def test_sequences_read_beside_each_other_stay_apart(tmp_path):
    saved(tmp_path, "gpt2")
    ours = CausalModel(tmp_path)
    alone, other, beside = ours.open(), ours.open(), ours.open()
    (wanted,) = ours.forward([Read(alone, PROMPT, len(PROMPT))])
    _, found = ours.forward([Read(other, PROMPT[::-1], 1), Read(beside, PROMPT, len(PROMPT))])
    assert torch.equal(found, wanted)
