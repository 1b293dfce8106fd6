"""The fast path gives what transformers gives, and the same bits whatever else is in the batch."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from nsllm.node.engine.backend import Read
from nsllm.node.engine.fast import build as build_module
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.fast.build import build
from nsllm.node.engine.fast.encoder import BertEncoder, quick_dtype
from nsllm.node.engine.fast.native import NativeModel, Run
from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.fast.weights import load_weights
from nsllm.node.errors import ConfigError
from nsllm.record import Message

KINDS = {
    "llama": ("LlamaConfig", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "own keys for every head": ("LlamaConfig", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "seven heads share a key": (
        "LlamaConfig",
        {
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "hidden_size": 112,
            "head_dim": 48,
            "vocab_size": 97,
        },
    ),
    "tied, wide rope": (
        "LlamaConfig",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        },
    ),
    "a longer context than was trained": (
        "LlamaConfig",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "positions closer together": (
        "LlamaConfig",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        },
    ),
    "mistral": (
        "MistralConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None, "head_dim": 32},
    ),
    "qwen2": ("Qwen2Config", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}),
}
BASE = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}


def saved(folder, kind, seed=0):
    """A random model in `folder`; transformers' own instance of it. Norm weights and biases are not trivial."""
    import transformers

    name, changes = KINDS[kind]
    config = getattr(transformers, name)(**{**BASE, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                torch.nn.init.uniform_(parameter, 0.2, 1.8)
            elif parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.0, 0.3)
    model.save_pretrained(folder)
    return model


def native(folder, library, numerics, threads=1, blocks=32):
    shape = read_shape(json.loads((folder / "config.json").read_bytes()))
    assert shape is not None
    weights = load_weights(folder, shape, numerics)
    return NativeModel(library, shape, weights, numerics, blocks=blocks, threads=threads)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path, kernels, kind):
    theirs = saved(tmp_path, kind)
    ours = native(tmp_path, kernels, "float32")
    prompt = torch.randint(0, theirs.config.vocab_size, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt])).logits[0]
        wanted = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, 90:].tolist()
    blocks = list(range(8))
    logits = ours.forward([Run(prompt, 0, blocks, 90)])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < 60:
        tokens.append(int(ours.forward([Run(tokens[-1:], 89 + len(tokens), blocks, 1)])[0].argmax()))
    assert tokens == wanted
    ours.close()


@pytest.fixture
def int8(tmp_path, kernels):
    """The int8 path over a random model, as a function of the number of threads."""
    saved(tmp_path, "llama")
    models = []

    def make(threads=1, library=kernels):
        models.append(native(tmp_path, library, "int8", threads))
        return models[-1]

    yield make
    for model in models:
        model.close()


TOKENS = [(7 * i * i + 3) % 260 for i in range(120)]


def alone(model, first_block=0):
    """All logits of `TOKENS`, read at once."""
    return model.forward([Run(TOKENS, 0, list(range(first_block, first_block + 4)), len(TOKENS))]).clone()


def test_int8_is_close_to_float32(tmp_path, kernels):
    saved(tmp_path, "llama")
    exact, rounded = (alone(native(tmp_path, kernels, numerics)) for numerics in ("float32", "int8"))
    assert not torch.equal(exact, rounded)
    loss = torch.nn.functional.kl_div(rounded.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="none")
    assert float(loss.sum(-1).mean()) < 0.02
    assert float((exact.argmax(-1) == rounded.argmax(-1)).float().mean()) > 0.9


@pytest.mark.parametrize("pieces", [[1] * 120, [31, 1, 32, 33, 23], [64, 56], [7, 100, 13]])
def test_how_a_prompt_is_cut_changes_no_bit(int8, pieces):
    model = int8()
    whole, parts, start = alone(model), [], 0
    for size in pieces:
        run = Run(TOKENS[start : start + size], start, [9, 5, 7, 6], size)
        parts.append(model.forward([run]).clone())
        start += size
    assert torch.equal(torch.cat(parts), whole)


def test_neighbours_change_no_bit_even_with_outliers(tmp_path, kernels):
    """Token 259's embedding is a thousand times larger than the others."""
    theirs = saved(tmp_path, "llama")
    with torch.no_grad():
        theirs.model.embed_tokens.weight[259, ::7] *= 1000
    theirs.save_pretrained(tmp_path)
    model = native(tmp_path, kernels, "int8")
    expected = alone(model)
    for before in range(1, 8):
        runs = [Run([259] * (i + 1), 0, [10 + i], i % 2) for i in range(before)]
        mine = Run(TOKENS, 0, [0, 1, 2, 3], len(TOKENS))
        other = Run([259, 1, 259], 0, [20], 3)
        logits = model.forward([*runs, mine, other])
        skipped = sum(run.keep for run in runs)
        assert torch.equal(logits[skipped : skipped + len(TOKENS)], expected)


def test_a_poisoned_neighbour_changes_no_bit(tmp_path, kernels):
    """A token whose numbers are not finite harms its own sequence only, and its blocks may be used again."""
    theirs = saved(tmp_path, "llama")
    with torch.no_grad():
        theirs.model.embed_tokens.weight[259] = float("nan")
    theirs.save_pretrained(tmp_path)
    model = native(tmp_path, kernels, "int8")
    expected = alone(model)
    poisoned = Run([259] * 40, 0, [4, 5], 1)
    logits = model.forward([poisoned, Run(TOKENS, 0, [0, 1, 2, 3], len(TOKENS))])
    assert torch.equal(logits[1:], expected)
    assert torch.equal(alone(model, first_block=4), expected)


def test_threads_change_no_bit(int8):
    """They share rows where there are many, outputs where there are few; one works alone where others are held up."""
    expected = alone(int8(threads=1))
    for threads in (2, 3):
        model = int8(threads=threads)
        assert torch.equal(alone(model), expected)
        parts, start = [], 0
        for size in (1, 40, 5, 74):
            run = Run(TOKENS[start : start + size], start, [9, 5, 7, 6], size)
            parts.append(model.forward([run]).clone())
            start += size
        assert torch.equal(torch.cat(parts), expected)


def test_rows_that_are_not_asked_for_change_no_bit_of_others(int8):
    """The last layer leaves them out."""
    model = int8(threads=2)
    expected = alone(model)
    for keep in (0, 1, 7, 119):
        first = Run(TOKENS[:50], 0, [10, 11], 0)
        logits = model.forward([first, Run(TOKENS, 0, [0, 1, 2, 3], keep), Run(TOKENS[:90], 0, [4, 5, 6], 1)])
        assert torch.equal(logits[:keep], expected[len(expected) - keep :])
        assert torch.equal(logits[keep], expected[89])


def test_another_processor_changes_no_bit(int8, kernels, tmp_path, monkeypatch):
    """Compiled for the least of processors: no vector instructions beyond the platform's minimum."""
    plain = tuple(flag for flag in build_module.FLAGS if flag != "-march=native")
    monkeypatch.setattr(build_module, "FLAGS", plain)
    library = build(tmp_path / "plain")
    assert library != kernels
    assert torch.equal(alone(int8(library=library)), alone(int8()))


@pytest.mark.parametrize("keep", [1, 7, 98])
def test_logits_are_told_once_more_to_the_bit(int8, keep):
    model = int8()
    expected = alone(model)
    model.forward([Run(TOKENS, 0, [0, 1, 2, 3], keep)])
    states = model.states[:keep].clone()
    model.forward([Run(TOKENS[:40], 0, [4, 5], 40)])  # writes over all that is not copied
    for start in range(0, keep, 50):
        told = model.logits_of(states[start : start + 50])
        assert torch.equal(told, expected[len(expected) - keep :][start : start + 50])


def test_log_probabilities(fast):
    logits = torch.randn(5, 260, generator=torch.Generator().manual_seed(3)) * 4
    expected = logits.log_softmax(-1)[torch.arange(5), torch.tensor([0, 4, 259, 7, 7])].tolist()
    assert fast.log_probabilities(logits, [0, 4, 259, 7, 7]) == pytest.approx(expected, abs=1e-5)
    assert fast.log_probabilities(logits[:0], []) == []


def test_what_is_known_of_a_prompt_is_not_read_again_and_changes_no_bit(fast):
    prompt = fast.chat_tokens((Message(role="user", content="x" * 100),))
    first = fast.open(prompt, 200, side=False)
    assert first.read == 0
    (expected,) = fast.forward([Read(first, prompt, 1)])
    expected = expected.clone()
    second = fast.open(prompt, 200, side=False)
    assert second.read == (len(prompt) - 1) // 32 * 32 > 0
    (logits,) = fast.forward([Read(second, prompt[second.read :], 1)])
    assert torch.equal(logits, expected)
    fast.close(first)
    fast.close(second)
    assert fast.open(prompt, 200, side=True).read == second.read // 32 * 32


@pytest.mark.parametrize("shared", [1, 13, 31, 40])
def test_what_is_copied_of_another_prompt_changes_no_bit(fast, tiny, kernels, shared):
    ours = [5 + i % 250 for i in range(90)]
    theirs = [*ours[:shared], 4, *ours[shared + 1 :]]
    alone = FastBackend(tiny.text, tiny.encoder, kernels, "float32", threads=1, cache_mb=1)
    expected = alone.read([Read(alone.open(ours, 100, side=False), ours, 1)]).clone()
    first = fast.open(theirs, 100, side=False)
    fast.read([Read(first, theirs, 0)])
    second = fast.open(ours, 100, side=False)
    assert second.read == shared
    assert torch.equal(fast.read([Read(second, ours[shared:], 1)]), expected)


def test_memory_for_keys_and_values_is_bounded(fast):
    """Two contexts of 256 tokens at least: one for generations, one for side work."""
    held = []
    while (lease := fast.open([1, 2, 3], 100, side=False)) is not None:
        held.append(lease)
    bound_bytes = 1 << 20
    tokens_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head_dim, float32
    assert len(held) * 100 <= bound_bytes // tokens_bytes - 256
    assert fast.open(list(range(200)), 256, side=True) is not None
    fast.close(held.pop())
    assert fast.open([1, 2, 3], 100, side=False) is not None


def test_tokenizer_and_template_are_those_of_transformers(fast, general):
    for text in ("", "Grüße, 世界! 🦊  two  spaces", "<|im_end|>injected", "a\r\n\tb" * 50):
        assert fast.tokens(text) == general.tokens(text)
        conversation = (
            Message(role="system", content="Be brief."),
            Message(role="user", content=text),
            Message(role="assistant", content="ok"),
            Message(role="user", content="go on"),
        )
        prompt = fast.chat_tokens(conversation)
        assert prompt == general.chat_tokens(conversation)
        assert fast.text(prompt) == general.text(prompt)
    for name in ("context_tokens", "end_token_ids", "longest_token_chars"):
        assert getattr(fast, name) == getattr(general, name)


def test_embeddings_are_those_of_transformers(tiny, general):
    texts = ["one", "", "a longer text than the others " * 20, "Grüße 🦊"]
    encoder = BertEncoder(tiny.encoder, torch.float32)
    rows = encoder.read(texts)
    assert rows == general.encoder.read(texts)
    torch.testing.assert_close(encoder.vectors(rows), general.encoder.vectors(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-3)])
def test_an_embedding_does_not_depend_on_what_is_read_beside_it(tiny, dtype, apart):
    encoder = BertEncoder(tiny.encoder, dtype)
    rows = encoder.read(["one", "", "a longer text than the others " * 20, "Grüße 🦊"])
    alone = torch.cat([encoder.vectors([row]) for row in rows])
    assert (alone * encoder.vectors(rows)).sum(1).min() > 1 - apart


def test_a_processor_that_multiplies_bfloat16_embeds_in_it(tiny, monkeypatch):
    for can, dtype in (({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False, "avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert quick_dtype() == dtype
    exact = BertEncoder(tiny.encoder, torch.float32)
    rows = exact.read(["one", "a longer text than the others"])
    one, other = exact.vectors(rows), BertEncoder(tiny.encoder, torch.bfloat16).vectors(rows)
    assert not torch.equal(one, other)
    assert (one * other).sum(1).min() > 0.995


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(tiny, kernels, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny.text, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    with pytest.raises(ConfigError, match="ids go to 259, the model knows 200"):
        FastBackend(folder, tiny.encoder, kernels, "float32", threads=1, cache_mb=1)


def test_a_pass_without_memory_says_so(int8, monkeypatch):
    model = int8()
    monkeypatch.setattr(model, "_library", type("Full", (), {"forward": lambda *_: -1, "team_stop": lambda *_: 0})())
    with pytest.raises(MemoryError, match="no memory for 120 tokens"):
        alone(model)
