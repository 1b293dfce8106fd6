"""A GGUF file's tokenizer as Hugging Face's tokenizer.json and tokenizer_config.json, where its kind is known.

SentencePiece's are `nsllm.node.engine.gguf_sentencepiece`; the others are byte-level BPE.

A GGUF file only names the way in which text is cut before merging (`tokenizer.ggml.pre`); what the name means stands in
llama.cpp (`llama-vocab.cpp`) and in the models' own tokenizer.json files. A name that is not known here is refused: a
tokenizer that cuts otherwise would read most texts a little wrong, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gguf import GGUFReader

from nsllm.node.engine.gguf_sentencepiece import faults, sentencepiece_parts
from nsllm.node.engine.recast import ConversionError

SENTENCEPIECE: Final = "llama"
"""What llama.cpp calls SentencePiece's BPE."""
UNKNOWN_TOKEN: Final = 2
"""GGUF's token type for the one that stands for what no token spells."""
CONTROL_TOKEN: Final = 3
"""GGUF's token type for control tokens."""
USER_TOKEN: Final = 4
"""GGUF's token type for further tokens that no merge makes."""
_REQUIRED: Final = object()
_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES: Final[Mapping[str, Any]] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_GPT2: Final[Mapping[str, Any]] = {**_BYTES, "use_regex": True}
"""GPT-2's pattern is a part of it."""


def _cut(numbers: str) -> list[Mapping[str, Any]]:
    split = {
        "type": "Split", "pattern": {"Regex": _WORDS % numbers}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    return [split, {**_BYTES, "use_regex": False}]


CUTS: Final[Mapping[str, list[Mapping[str, Any]]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    "gpt-2": [_GPT2],
    "llama-bpe": _cut(r"\p{N}{1,3}"),
    "qwen2": _cut(r"\p{N}"),
}
"""How text is cut, by llama.cpp's names."""
WHOLE_FIRST: Final = ("llama-bpe",)
"""Kinds that take a piece that is a token as it stands, whatever the merges say."""
NORMALIZED: Final = ("qwen2",)
"""Kinds that bring text to NFC first."""


def field(reader: GGUFReader, name: str, default: Any = _REQUIRED) -> Any:
    """A field's value.

    Raises:
        ConversionError: it is not there, and there is no default.
    """
    found = reader.get_field(name)
    if found is None and default is _REQUIRED:
        raise ConversionError(f"no field {name!r} in the GGUF file")
    return default if found is None else found.contents()


def check_tokenizer(reader: GGUFReader, file: str) -> None:
    """Pass silently if the tokenizer is of a kind that is known here.

    Raises:
        ConversionError: names the kind.
    """
    model, kind = field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre", "default")
    if model == SENTENCEPIECE:
        names = ("scores", "precompiled_charsmap", "add_eos_token")
        says = {name: value for name in names if (value := field(reader, f"tokenizer.ggml.{name}", None)) is not None}
        if wrong := faults(field(reader, "tokenizer.ggml.tokens"), says):
            raise ConversionError(f"{file}: a SentencePiece tokenizer with {wrong}")
    elif model != "gpt2" or kind not in CUTS:
        known = ", ".join(repr(name) for name in CUTS)
        raise ConversionError(
            f"{file}: tokenizer {model!r} of the kind {kind!r}, expected {SENTENCEPIECE!r}, or 'gpt2' of one of {known}"
        )


def tokenizer_json(reader: GGUFReader) -> dict[str, Any]:
    """tokenizer.json of a kind that `check_tokenizer` let pass."""
    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
    types: list[int] = field(reader, "tokenizer.ggml.token_type")
    apart = {CONTROL_TOKEN, USER_TOKEN}
    if _is_sentencepiece(reader):
        apart.add(UNKNOWN_TOKEN)
        parts = sentencepiece_parts(
            tokens,
            types,
            field(reader, "tokenizer.ggml.scores"),
            unknown=special_tokens(reader).get("unk_token"),
            spaced=field(reader, "tokenizer.ggml.add_space_prefix", None) is not False,
        )
    else:
        parts = _byte_level_parts(reader, tokens)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": type_ != USER_TOKEN}
            for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
            if type_ in apart
        ],
        "post_processor": _begins(reader, tokens),
        **parts,
    }


def _is_sentencepiece(reader: GGUFReader) -> bool:
    return bool(field(reader, "tokenizer.ggml.model") == SENTENCEPIECE)


def _byte_level_parts(reader: GGUFReader, tokens: list[str]) -> dict[str, Any]:
    kind: str = field(reader, "tokenizer.ggml.pre")
    merges: list[str] = field(reader, "tokenizer.ggml.merges")
    return {
        "normalizer": {"type": "NFC"} if kind in NORMALIZED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[kind]},
        "decoder": _GPT2,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": kind in WHOLE_FIRST,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def special_tokens(reader: GGUFReader) -> dict[str, int]:
    """Ids of the tokens with a part to play, as Hugging Face calls them, as far as the file names them."""
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    stated = {name: field(reader, f"tokenizer.ggml.{theirs}_token_id", None) for name, theirs in names.items()}
    return {name: int(token) for name, token in stated.items() if token is not None}


def tokenizer_config(reader: GGUFReader, context_tokens: int) -> dict[str, Any]:
    """tokenizer_config.json."""
    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
        **{name: tokens[token] for name, token in special_tokens(reader).items()},
    }


def _begins(reader: GGUFReader, tokens: list[str]) -> dict[str, Any] | None:
    """What puts a token before every text, if the file says that there is one (for Llama's kinds: unless it denies)."""
    first = special_tokens(reader).get("bos_token")
    usual = _is_sentencepiece(reader) or field(reader, "tokenizer.ggml.pre") in WHOLE_FIRST
    says = field(reader, "tokenizer.ggml.add_bos_token", usual)
    if not says or first is None:
        return None
    token = tokens[first]
    before = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [before, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [before, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [first], "tokens": [token]}},
    }
