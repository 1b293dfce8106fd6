"""Tiny random models that see: an Idefics3 (SmolVLM's kind) and a LLaVA, real files through the real code.

For tests and quick local experiments, as `nsllm.node.engine.tiny`: what they say depends on pictures, not on sense.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from nsllm.node.engine.tiny import SPECIAL, TEXT_SPECIAL

IDEFICS_NAME: Final = "tiny-random-idefics3"
LLAVA_NAME: Final = "tiny-random-llava"
CONTEXT_TOKENS: Final = 512
IMAGE_SIDE: Final = 64
PATCH: Final = 16
SCALE: Final = 2
"""Idefics3 merges squares of so many patches a side into one token."""
PICTURE: Final = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_idefics(folder: Path, *, seed: int = 0) -> Path:
    """An Idefics3 of 2 layers with one token a byte; 4 tokens a picture. Needs Pillow.

    Args:
        folder: exists; the model's folder is made below it.
        seed: of the random weights.
    """
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    target = folder / IDEFICS_NAME
    tokenizer = _tokenizer()
    side = {"longest_edge": IMAGE_SIDE}
    pictures = Idefics3ImageProcessorPil(do_image_splitting=False, size=side, max_image_size=side)
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
        scale_factor=SCALE,
        tie_word_embeddings=False,
        vision_config=_vision(),
        text_config=_text(len(tokenizer)),
    )
    _save(Idefics3ForConditionalGeneration, config, target, seed)
    tokens = (IMAGE_SIDE // PATCH // SCALE) ** 2
    Idefics3Processor(pictures, tokenizer, image_seq_len=tokens, chat_template=TEMPLATE).save_pretrained(target)
    return target


def build_tiny_llava(folder: Path, *, seed: int = 0) -> Path:
    """A LLaVA of 2 layers with one token a byte; 16 tokens a picture. Needs Pillow.

    Args:
        folder: exists; the model's folder is made below it.
        seed: of the random weights.
    """
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    target = folder / LLAVA_NAME
    tokenizer = _tokenizer()
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    config = LlavaConfig(
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **_vision()},
        text_config=_text(len(tokenizer)),
    )
    _save(LlavaForConditionalGeneration, config, target, seed)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIDE}, crop_size=side),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(target)
    return target


def _vision() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.2,  # wide enough that pictures make a difference
    }


def _text(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }


def _tokenizer() -> Any:
    """One token a byte, and the marks of turns and pictures."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    spelled = [*SPECIAL, *PICTURE, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(spelled)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<|im_start|>", *PICTURE],
        extra_special_tokens={"image_token": "<image>"},
        **TEXT_SPECIAL,
    )


def _save(kind: Any, config: Any, folder: Path, seed: int) -> None:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
