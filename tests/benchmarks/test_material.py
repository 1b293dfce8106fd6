"""Texts and prompts, cut from passages by a tokenizer that takes a letter for a token."""

from __future__ import annotations

import pytest

from benchmarks import material

PASSAGES = [
    "Rain falls on hills and valleys alike",
    "Rain falls on roofs, which is another matter",
    "Short one here",
    "Snow lies on mountains for half of the year",
]


@pytest.fixture(autouse=True)
def passages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "passages", lambda: PASSAGES)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def spelled(tokens) -> str:
    return "".join(map(chr, tokens))


def test_windows_follow_each_other_without_gaps():
    found = material.windows(letters, 5, 20)
    assert [len(window) for window in found] == [20] * 5
    assert "".join(map(spelled, found)) == "\n\n".join(PASSAGES)[:100]


def test_too_little_text_is_said():
    with pytest.raises(ValueError, match="7 windows of 20 tokens, not 8"):
        material.windows(letters, 8, 20)


def test_prompts_have_one_length_and_beginnings_of_their_own():
    assert list(material.prompts(letters, spelled, 20)) == ["Rain falls on hills ", "Snow lies on mountai"]
