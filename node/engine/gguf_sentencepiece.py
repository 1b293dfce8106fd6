"""A GGUF file's SentencePiece vocabulary as Hugging Face's tokenizer.json: BPE by scores, with bytes for what is left.

llama.cpp calls this kind `llama` (Llama 2, Mistral 7B, TinyLlama). Its file has a score a token and no merges: two
neighbours that spell a token become one, those with the highest score first (`llama-vocab.cpp`, `llm_tokenizer_spm`).
As transformers does for such models, merges are made of the scores: every way to cut a token in two tokens, by falling
score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

SPACE: Final = "▁"
NORMAL_TOKEN: Final = 1
"""GGUF's token type for pieces of text."""
BYTES: Final = tuple(f"<0x{value:02X}>" for value in range(256))


def faults(tokens: Sequence[str], says: Mapping[str, Any]) -> str:
    """What of such a file is not read here; empty if all is.

    Args:
        tokens: in order of their ids.
        says: the file's `tokenizer.ggml.…` fields by the rest of their names, as far as they stand there.
    """
    if "scores" not in says:
        return "no scores"
    if len(set(tokens)) != len(tokens):
        return "a token that stands there twice"
    if not set(BYTES).issubset(tokens):
        return "no tokens for single bytes"
    if says.get("precompiled_charsmap"):
        return "a normalization of its own"
    return "an end after every text" if says.get("add_eos_token") else ""


def sentencepiece_parts(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], *, unknown: int | None, spaced: bool
) -> dict[str, Any]:
    """The parts of tokenizer.json that make text tokens, and tokens text.

    Args:
        tokens: in order of their ids.
        types: GGUF's, of each.
        scores: of each.
        unknown: id of the token for what no token spells; with tokens for all bytes it is never used.
        spaced: whether a space is put before every text.
    """
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    text = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    before = [{"type": "Prepend", "prepend": SPACE}] if spaced else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaced else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [text, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _merges(tokens, types, scores),
        },
    }


def _merges(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """Pairs of tokens that spell a token, those of the highest score first."""
    rows = zip(tokens, types, scores, strict=True)
    pieces = {token: score for token, type_, score in rows if type_ == NORMAL_TOKEN}
    merges: list[tuple[float, int, int, list[str]]] = []
    for place, (piece, score) in enumerate(pieces.items()):
        for cut in range(1, len(piece)):
            pair = [piece[:cut], piece[cut:]]
            if all(part in pieces for part in pair):
                merges.append((-score, place, -cut, pair))
    return [pair for *_, pair in sorted(merges)]
