"""A bad word is what the tokenizer makes of it, alone and after a space, and nothing else."""

from __future__ import annotations

import pytest

from nsllm.node.engine.bad_words import BadWords, spellings

VOCABULARY = {"cat": [5], " cat": [6], "cats": [5, 9], " cats": [6, 9], "o": [1], " o": [2, 1], "▁": [], " ▁": []}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["cat"], {(5,), (6,)}),
        ([" cat"], {(6,)}),
        (["cats", "cat"], {(5, 9), (6, 9), (5,), (6,)}),
        (["o"], {(1,)}),  # a space is a token of its own: the word after it is ruled out already
        (["▁"], set()),
        ([], set()),
    ],
)
def test_spellings(words, found):
    assert set(spellings(words, VOCABULARY.__getitem__)) == found


def test_only_the_end_of_a_word_is_ruled_out_and_only_after_its_beginning():
    bad = BadWords([(5, 9), (4, 5, 9, 1)])
    seen = []
    for token in (4, 5, 8, 4, 5, 9, 9):
        seen.append(bad.next_tokens())
        bad.accept(token)
    assert seen == [[], [], [9], [], [], [9], [1]]
