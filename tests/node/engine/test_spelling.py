"""What tokens spell: the same text as the tokenizer's own decoding, token by token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nsllm.node.engine.spelling import BYTES, WindowSpelling, spelling_of

WORLD = "\xe4\xb8\u0138"
"""As the vocabulary writes the three bytes of 世."""


def byte_level():
    """All single bytes, some words of more than one, a special token and two added ones that are none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġthe", WORLD, "ðŁĲ", "ĊĊ"]
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate([*alphabet, *words])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("世 界")])
    return tokenizer


TOKENIZER = byte_level()
SIZE = TOKENIZER.get_vocab_size(with_added_tokens=True)
END = TOKENIZER.token_to_id("<|end|>")


def decode(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=True)


def streamed(spelling, ids):
    decoder = spelling.decoder()
    return "".join([*(decoder.push(token) for token in ids), decoder.finish()])


@given(st.lists(st.integers(0, SIZE + 3), max_size=40))
def test_bytes_join_to_what_the_tokenizer_decodes(ids):
    assert streamed(spelling_of(TOKENIZER, decode), ids) == decode(ids)


@given(st.text(max_size=30))
def test_text_comes_in_whole_characters(text):
    decoder = spelling_of(TOKENIZER, decode).decoder()
    pieces = [decoder.push(token) for token in TOKENIZER.encode(text, add_special_tokens=False).ids]
    assert "".join(pieces) == text
    assert decoder.finish() == ""


def test_every_byte_has_one_character():
    assert sorted(BYTES.values()) == list(range(256))
    assert {char: bytes([byte]) for char, byte in BYTES.items()} == {
        char: spelling_of(TOKENIZER, decode).token_bytes(TOKENIZER.token_to_id(char)) for char in BYTES
    }


@pytest.mark.parametrize(
    ("token", "spelled"),
    [("Ġthe", b" the"), (WORLD, "世".encode()), ("<|end|>", b"<|end|>"), ("世 界", "世 界".encode())],
)
def test_single_tokens(token, spelled):
    assert spelling_of(TOKENIZER, decode).token_bytes(TOKENIZER.token_to_id(token)) == spelled


@pytest.mark.parametrize(
    ("token", "spelled"), [("▁the", b" the"), ("<0xE4>", b"\xe4"), ("<0xE>", b"<0xE>"), (None, b"")]
)
def test_single_tokens_of_other_tokenizers(token, spelled):
    assert WindowSpelling(decode, lambda _id: token).token_bytes(5) == spelled


def test_a_token_is_written_as_in_the_vocabulary():
    assert [spelling_of(TOKENIZER, decode).written(TOKENIZER.token_to_id(token)) for token in ("Ġthe", "<|end|>")] == [
        "Ġthe",
        "<|end|>",
    ]
    assert spelling_of(TOKENIZER, decode).written(SIZE + 3) == ""
    assert WindowSpelling(decode, lambda _id: "▁the").written(5) == "▁the"


def test_other_decoders_are_asked_themselves():
    words = Tokenizer(models.BPE(vocab={"▁a": 0, "▁b": 1}, merges=[]))
    words.decoder = decoders.Metaspace()
    spelling = spelling_of(words, words.decode)
    assert isinstance(spelling, WindowSpelling)
    assert streamed(spelling, [0, 1, 0]) == "a b a"
