"""Tiny random models: real files through the real code, built in a moment, that say nothing sensible.

For tests and quick local experiments. Their folder names, which become the models' names, say what they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nsllm.node.engine.models import ModelPaths
from nsllm.record import EMBEDDING_DIMENSIONS

TEXT_NAME: Final = "tiny-random-llama"
ENCODER_NAME: Final = "tiny-random-bert"
CONTEXT_TOKENS: Final = 256
TEMPLATE: Final = (
    "{% for m in messages %}"
    "{% if 'REFUSE THIS' in m['content'] %}{{ raise_exception('this template refuses that') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_SPECIAL: Final = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<|im_end|>"}
ENCODER_SPECIAL: Final = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL: Final = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]


def build_tiny_models(folder: Path, *, seed: int = 0) -> ModelPaths:
    """A Llama of 2 layers with one token a byte, and a BERT of 1 layer with 384 dimensions, below `folder`.

    Takes about a second beside importing torch, which this does: call it in tests and scripts, never in a peer.

    Args:
        folder: exists; models that are there already are replaced.
        seed: of the random weights; the same seed makes the same model digests.
    """
    paths = ModelPaths(text=folder / TEXT_NAME, encoder=folder / ENCODER_NAME)
    _build_text(paths.text, seed)
    _build_encoder(paths.encoder, seed)
    return paths


def _build_text(folder: Path, seed: int) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    spelled = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(spelled)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<|im_start|>"], **TEXT_SPECIAL
    )
    wrapped.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(spelled),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        initializer_range=0.1,  # wide enough that greedy decoding does not repeat one byte
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def _build_encoder(folder: Path, seed: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    spelled = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(code) for code in range(0x21, 0x7F))]
    vocabulary = {token: i for i, token in enumerate(spelled)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=ENCODER_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ENCODER_SPECIAL)
    config = BertConfig(
        vocab_size=len(spelled),
        hidden_size=EMBEDDING_DIMENSIONS,
        intermediate_size=EMBEDDING_DIMENSIONS,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
