"""Chunks are stretches of the text, within their bounds, and together all of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.cache_dht.chunking import chunks
from nsllm.record import MAX_CHUNK_CHARS


def words(texts):
    return [len(text.split()) for text in texts]


def letters(texts):
    return [sum(not char.isspace() for char in text) for text in texts]


documents = st.text(st.sampled_from("ab .\n\t。é"), max_size=400)


@settings(max_examples=300, deadline=None)
@given(documents, st.integers(2, 30), st.data())
def test_every_character_is_in_a_chunk_and_no_chunk_is_too_large(text, most, data) -> None:
    overlap = data.draw(st.integers(0, most - 1))
    count = data.draw(st.sampled_from([words, letters]))
    made = chunks(text, count, most_tokens=most, overlap_tokens=overlap)
    covered = set()
    for before, after in pairwise(made):
        assert before.start < after.start
        assert before.end < after.end
    for one in made:
        part = text[one.start : one.end]
        assert part == part.strip() != ""
        # a slice of one long word is the one thing that may be larger than its bound
        assert sum(count([part])) <= most or " " not in part
        assert len(part) <= MAX_CHUNK_CHARS
        covered.update(range(one.start, one.end))
    assert all(char.isspace() or at in covered for at, char in enumerate(text))
    assert made == chunks(text, count, most_tokens=most, overlap_tokens=overlap)


def test_a_paragraph_that_fits_is_never_cut() -> None:
    text = "One two three.\n\nFour five six. Seven eight.\n\nNine."
    made = [text[one.start : one.end] for one in chunks(text, words, most_tokens=6, overlap_tokens=2)]
    assert made == ["One two three.", "Four five six. Seven eight.\n\nNine."]


def test_where_a_paragraph_is_cut_the_next_chunk_repeats_its_last_sentences() -> None:
    text = "One two. Three four. Five six. Seven eight."
    made = [text[one.start : one.end] for one in chunks(text, words, most_tokens=4, overlap_tokens=2)]
    assert made == ["One two. Three four.", "Three four. Five six.", "Five six. Seven eight."]


def test_words_without_end_are_cut() -> None:
    (first, *_, last) = chunks("a" * 20_000, letters, most_tokens=200, overlap_tokens=0)
    assert first.end - first.start <= 200
    assert last.end == 20_000


def test_an_overlap_of_a_whole_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap_tokens is 5"):
        chunks("a", words, most_tokens=5, overlap_tokens=5)
