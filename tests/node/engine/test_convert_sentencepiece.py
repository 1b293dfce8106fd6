"""GGUF files with SentencePiece vocabularies: text is read as llama.cpp reads it, and comes back."""

from __future__ import annotations

import heapq
import itertools

import gguf
import numpy as np
import pytest
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from nsllm.node.engine import convert
from nsllm.node.engine.fast.chat import ChatText
from nsllm.node.engine.fetch import CANNOT_CONVERT
from nsllm.node.engine.spelling import spelling_of

FIRST = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
BYTES = [(f"<0x{value:02X}>", TokenType.BYTE) for value in range(256)]
CORPUS = "the band the bend a banana an and nab then é thé bet ten tenth  the  abba" * 3
SPACE = "▁"
EMBEDDING = 32


def trained(text, count):
    """Pieces in the order in which BPE finds them: the commonest pair of neighbours becomes one, again and again."""
    words = [list(SPACE + word) for word in text.split(" ")]
    pieces = []
    for _ in range(count):
        pairs = {}
        for word in words:
            for pair in itertools.pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        pieces.append("".join(best))
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return list(dict.fromkeys(pieces))


PIECES = trained(CORPUS, 30)
CHARS = sorted({*CORPUS.replace(" ", SPACE), "\n"})
ROWS = [
    *FIRST,
    *BYTES,
    *[(piece, TokenType.NORMAL) for piece in [*PIECES, *CHARS]],
    ("<tool>", TokenType.USER_DEFINED),
    ("spare", TokenType.UNUSED),
]
TOKENS = [token for token, _ in ROWS]
SCORES = [0.0] * (len(FIRST) + len(BYTES)) + [-float(i) for i in range(len(ROWS) - len(FIRST) - len(BYTES))]


def read(text):
    """Tokens as `llm_tokenizer_spm` of llama.cpp makes them, of text without special tokens."""
    known = {token: (score, i) for i, ((token, type_), score) in enumerate(zip(ROWS, SCORES, strict=True))
             if type_ == TokenType.NORMAL}  # fmt: skip
    symbols = list(text.replace(" ", SPACE))
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    queue = []

    def consider(left, right):
        if left != -1 and right != -1 and (both := symbols[left] + symbols[right]) in known:
            heapq.heappush(queue, (-known[both][0], left, right, both))

    for right in range(1, len(symbols)):
        consider(right - 1, right)
    while queue:
        _, left, right, both = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != both:
            continue
        symbols[left], symbols[right] = both, ""
        after[left] = after[right]
        if after[right] != -1:
            before[after[right]] = left
        consider(before[left], left)
        consider(left, after[left])
    found = []
    for symbol in filter(None, symbols):
        found += [known[symbol][1]] if symbol in known else [len(FIRST) + byte for byte in symbol.encode()]
    return found


def write(path, *, rows=ROWS, scores=SCORES, **fields):
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"block_count": 1, "context_length": 64, "embedding_length": EMBEDDING}.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in rows])
    writer.add_token_types([type_ for _, type_ in rows])
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tensor("token_embd.weight", np.zeros((len(rows), EMBEDDING), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(folder, **fields):
    write(folder / "m.gguf", **fields)
    (folder / "out").mkdir()
    convert.convert(folder / "m.gguf", folder / "out", lambda _done, _total: None, "float32")
    return folder / "out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("sentencepiece"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("abdehnté \n世x" + SPACE), max_size=40) | st.text(max_size=20))
def test_text_is_read_as_by_llama_cpp_and_comes_back(folder, text):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == (read(" " + text) if text else [])
    if SPACE not in text:
        assert tokenizer.decode(ids) == text
        decoder = spelling_of(tokenizer, tokenizer.decode).decoder()
        assert "".join(map(decoder.push, ids)) + decoder.finish() == text


def test_common_words_are_tokens_and_strange_characters_their_bytes(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("the banana", add_special_tokens=False).tokens[0] == "▁the"
    assert tokenizer.encode("世", add_special_tokens=False).tokens == [SPACE, "<0xE4>", "<0xB8>", "<0x96>"]
    assert tokenizer.encode("a").tokens[0] == "<s>"
    assert "spare" not in tokenizer.encode("spare").tokens


def test_both_readers_of_a_folder_agree(folder):
    chat, theirs = ChatText(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("the band", "<s>the<tool>band</s>", " 世 then", ""):
        assert chat.text_tokens(text) == theirs(text)["input_ids"]
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == ("<s>", "</s>", "<unk>")
    marked = chat.tokens("<s>the<tool>band</s>the")
    assert [TOKENS[token] for token in marked if token < 3 or TOKENS[token] == "<tool>"] == ["<s>", "<tool>", "</s>"]
    assert marked[-1] == TOKENS.index("▁the"), "a space before what follows a special token, as llama.cpp has it"


def test_a_character_of_several_byte_tokens_comes_whole(folder):
    chat = ChatText(folder)
    decoder = chat.spelling.decoder()
    pieces = [decoder.push(token) for token in chat.tokens("é 世界 a")]
    assert [piece for piece in pieces if piece] == ["é", " ", "世", "界", " a"]
    assert decoder.finish() == ""


@pytest.mark.parametrize(("field", "first"), [({}, "<s>"), ({"add_bos_token": False}, "▁the")])
def test_a_file_may_deny_the_beginning(tmp_path, field, first):
    assert Tokenizer.from_file(str(converted(tmp_path, **field) / "tokenizer.json")).encode("the").tokens[0] == first


def test_a_file_may_deny_the_space_before_a_text(tmp_path):
    tokenizer = Tokenizer.from_file(str(converted(tmp_path, add_space_prefix=False) / "tokenizer.json"))
    for text in ("the band", " the", "世"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == read(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": None}, "no scores"),
        ({"rows": ROWS[:-1] + ROWS[5:6]}, "a token that stands there twice"),
        ({"rows": [*ROWS[:5], ("other", TokenType.NORMAL), *ROWS[6:]]}, "no tokens for single bytes"),
        ({"add_eos_token": True}, "an end after every text"),
        ({"precompiled_charsmap": b"\1\2"}, "a normalization of its own"),
    ],
)
def test_what_is_not_read_is_refused(tmp_path, capsys, change, said):
    write(tmp_path / "m.gguf", **change)
    (tmp_path / "out").mkdir()
    assert convert.main([str(tmp_path / "m.gguf"), str(tmp_path / "out"), "bfloat16"]) == CANNOT_CONVERT
    assert f"a SentencePiece tokenizer with {said}" in capsys.readouterr().err
