"""The batched path gives what transformers gives, whatever it reads at once and however prompts are cut."""

from __future__ import annotations

import json

import pytest
import torch

from nsllm.node.engine.backend import Read
from nsllm.node.engine.batched.backend import BatchedBackend
from nsllm.node.engine.batched.model import TorchLlama
from nsllm.node.engine.fast.native import Run
from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.protocol import Cancel, Generate
from nsllm.node.engine.scheduler import Scheduler
from nsllm.node.errors import ConfigError
from nsllm.record import Message, Sampling

BASE = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
LONG_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS = {
    "llama": ("LlamaConfig", {}),
    "llama 3, tied": ("LlamaConfig", {"rope_parameters": LONG_ROPE, "tie_word_embeddings": True}),
    "own keys for every head": ("LlamaConfig", {"num_key_value_heads": 4}),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
}
TOKENS = [(7 * i * i + 3) % 260 for i in range(120)]
OTHERS = [[(5 * i + seed) % 260 for i in range(40 * seed)] for seed in (1, 2, 3)]
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def saved(folder, kind, dtype=torch.float32):
    """A random model in `folder`; transformers' own instance of it. Norm weights and biases are not trivial."""
    import transformers

    name, changes = KINDS[kind]
    config = getattr(transformers, name)(**{**BASE, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                torch.nn.init.uniform_(parameter, 0.2, 1.8)
            elif parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.0, 0.3)
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


def loaded(folder, dtype=torch.float32):
    shape = read_shape(json.loads((folder / "config.json").read_bytes()))
    assert shape is not None
    return TorchLlama(folder, shape, dtype, "cpu", blocks=32)


@pytest.fixture
def llama(tmp_path):
    """A random Llama on the batched path."""
    saved(tmp_path, "llama")
    return loaded(tmp_path)


def alone(model):
    """All logits of `TOKENS`, read at once."""
    return model.forward([Run(TOKENS, 0, [0, 1, 2, 3], len(TOKENS))])


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path, kind):
    theirs, prompt = saved(tmp_path, kind), TOKENS[:90]
    ours = loaded(tmp_path)
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt])).logits[0]
        wanted = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, 90:].tolist()
    blocks = [7, 3, 9, 1, 30]
    logits = ours.forward([Run(prompt, 0, blocks, 90)])
    torch.testing.assert_close(logits, expected, **CLOSE)
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < 60:
        tokens.append(int(ours.forward([Run(tokens[-1:], 89 + len(tokens), blocks, 1)])[0].argmax()))
    assert tokens == wanted
    assert len(set(tokens)) > 3  # no model that says one thing only


def test_what_is_stored_in_bfloat16_runs_in_it(tmp_path):
    theirs = saved(tmp_path, "qwen3", torch.bfloat16)
    with torch.inference_mode():
        expected = theirs(torch.tensor([TOKENS])).logits[0].float()
    ours = loaded(tmp_path, torch.bfloat16)
    logits = alone(ours)
    assert logits.dtype == torch.float32
    loss = torch.nn.functional.kl_div(
        logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="sum"
    )
    assert float(loss) / len(logits) < 0.02
    assert not torch.equal(logits, alone(loaded(tmp_path)))


@pytest.mark.parametrize("pieces", [[1] * 120, [31, 1, 32, 33, 23], [64, 56], [7, 100, 13]])
def test_how_a_prompt_is_cut_changes_nothing(llama, pieces):
    whole, parts, start = alone(llama), [], 0
    for size in pieces:
        parts.append(llama.forward([Run(TOKENS[start : start + size], start, [9, 5, 7, 6], size)]))
        start += size
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)


def test_pieces_and_single_tokens_of_many_sequences_are_read_at_once(llama):
    """Each is given what it is given alone: two that read on, and two that write, of several lengths."""
    texts = [TOKENS, *OTHERS]
    blocks = [list(range(4 * i, 4 * i + 4)) for i in range(len(texts))]
    known = [50, 39, 0, 119]
    expected = [llama.forward([Run(text, 0, mine, len(text))]) for text, mine in zip(texts, blocks, strict=True)]
    runs = [
        Run(text[start:], start, mine, keep)
        for text, mine, start, keep in zip(texts, blocks, known, (70, 1, 0, 1), strict=True)
    ]
    logits = llama.forward([*runs, Run(TOKENS[:1], 0, [20], 1)])
    torch.testing.assert_close(logits[:70], expected[0][50:], **CLOSE)
    torch.testing.assert_close(logits[70:72], torch.stack([expected[1][-1], expected[3][-1]]), **CLOSE)
    torch.testing.assert_close(logits[72], expected[0][0], **CLOSE)


def test_a_poisoned_neighbour_harms_itself_only(tmp_path):
    """A token whose numbers are not finite; its blocks may be used again."""
    theirs = saved(tmp_path, "llama")
    with torch.no_grad():
        theirs.model.embed_tokens.weight[259] = float("nan")
    theirs.save_pretrained(tmp_path)
    model = loaded(tmp_path)
    tokens = [token % 259 for token in TOKENS[:100]]
    expected = model.forward([Run(tokens, 0, [0, 1, 2, 3], 100)])
    poison = Run([259] * 120, 0, [4, 5, 6, 7], 1)
    logits = model.forward([poison, Run(tokens, 0, [0, 1, 2, 3], 100)])
    torch.testing.assert_close(logits[1:], expected, **CLOSE)
    again = model.forward([Run(tokens, 0, [4, 5, 6, 7], 100)])
    torch.testing.assert_close(again, expected, **CLOSE)


def test_nothing_is_asked_for(llama):
    assert llama.forward([Run(TOKENS[:40], 0, [0, 1], 0)]).shape == (0, 260)


@pytest.mark.parametrize("shared", [0, 1, 13, 32, 40])
def test_what_is_known_of_another_prompt_is_not_read_again(batched, general, shared):
    """Whole blocks are shared, what is left of the beginning is copied."""
    ours = [5 + i % 250 for i in range(90)]
    theirs = [*ours[:shared], 4, *ours[shared + 1 :]]
    expected = general.read([Read(general.open(ours, 100, side=False), ours, 1)])
    first = batched.open(theirs, 100, side=False)
    batched.read([Read(first, theirs, 0)])
    second = batched.open(ours, 100, side=False)
    assert second.read == shared
    torch.testing.assert_close(batched.read([Read(second, ours[shared:], 1)]), expected, **CLOSE)


def test_closing_frees_the_blocks(batched):
    leases = [batched.open(tokens, 130, side=False) for tokens in OTHERS]
    batched.forward([Read(lease, tokens, 1) for lease, tokens in zip(leases, OTHERS, strict=True)])
    used, count = batched.room()
    assert 0 < used < count
    for lease in leases:
        batched.close(lease)
    assert batched.room() == (0, count)


def test_who_is_cancelled_gives_its_blocks_back(batched):
    said = []
    scheduler = Scheduler(batched, said.append)
    sampling = Sampling(temperature_micro=0, seed=1, max_tokens=100)
    for job in (1, 2):
        scheduler.handle(Generate(job, EngineRequest((Message(role="user", content="x" * 50),), sampling), 512))
    for _ in range(5):
        scheduler.step()
    both, _ = batched.room()
    scheduler.handle(Cancel(1))
    assert 0 < batched.room()[0] < both
    scheduler.handle(Cancel(2))
    assert batched.room()[0] == 0
    assert not scheduler.busy


def test_log_probabilities(batched):
    logits = torch.randn(5, 260, generator=torch.Generator().manual_seed(3)) * 4
    expected = logits.log_softmax(-1)[torch.arange(5), torch.tensor([0, 4, 259, 7, 7])].tolist()
    assert batched.log_probabilities(logits, [0, 4, 259, 7, 7]) == pytest.approx(expected, abs=1e-5)
    assert batched.log_probabilities(logits[:0], []) == []


def test_a_device_without_room_is_named(tiny, monkeypatch):
    def full(*_arguments, **_options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(ConfigError, match=r"cpu has no room for tiny-random-llama and .* two contexts of 256 tokens"):
        BatchedBackend(tiny.text, tiny.encoder, "float32", "cpu", library=None, cache_mb=1)
