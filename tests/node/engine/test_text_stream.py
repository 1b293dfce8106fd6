"""Streamed text: whole characters, nothing lost, nothing after a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.node.engine.spelling import WindowDecoder
from nsllm.node.engine.text_stream import TextStream


def spell_bytes(ids):
    return bytes(ids).decode("utf-8", "replace")


def spell_words(ids):
    """As SentencePiece does: every word brings its space, the first one loses it."""
    return "".join(f" w{i}" for i in ids)[1:]


def run(decode, ids, stops=()):
    stream = TextStream(WindowDecoder(decode), stops)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces


@given(st.lists(st.integers(0, 255), max_size=60))
def test_pieces_of_any_bytes_join_to_the_whole_text(ids):
    assert "".join(run(spell_bytes, ids)) == spell_bytes(ids)


@given(st.text(max_size=20))
def test_no_piece_of_good_text_holds_a_broken_character(text):
    pieces = run(spell_bytes, text.encode())
    assert "".join(pieces) == text
    assert ("\ufffd" in "".join(pieces)) == ("\ufffd" in text)


@given(st.lists(st.integers(0, 9), max_size=20))
def test_no_space_is_lost_where_decoders_strip_the_first_one(ids):
    assert "".join(run(spell_words, ids)) == spell_words(ids)


def test_an_emoji_of_four_tokens_comes_whole():
    assert run(spell_bytes, "a🦊b".encode()) == ["a", "", "", "", "🦊", "b", ""]


@given(st.text(alphabet="ab🦊", max_size=30), st.lists(st.text(alphabet="ab🦊", min_size=1, max_size=4), max_size=4))
def test_text_ends_before_the_first_stop_string(text, stops):
    ends = [text.find(stop) for stop in stops if stop in text]
    joined = "".join(run(spell_bytes, text.encode(), stops))
    # A stream sees a shorter stop string end before a longer one that began earlier.
    assert not any(stop in joined for stop in stops)
    assert text.startswith(joined)
    if not ends:
        assert joined == text
    if len(stops) == 1 and ends:
        assert joined == text[: ends[0]]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("say STOP now", ["STOP"], "say "),
        ("say STO", ["STOP"], "say STO"),
        ("SSTOP", ["STOP"], "S"),
        ("a\n\nb", ["\n\n"], "a"),
        ("one two", ["two", "one"], ""),
    ],
)
def test_stop_strings_over_token_borders(text, stops, expected):
    assert "".join(run(spell_bytes, text.encode(), stops)) == expected
