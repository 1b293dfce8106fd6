"""The toxicity head hears wording under its disguises, leaves ordinary text alone, and refuses a damaged file."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.governance.defaults import TOXICITY_MAX_PPM, built_in_rule_sets
from nsllm.governance.errors import PolicyError
from nsllm.governance.toxicity import MAX_HEAD_BYTES, default_head, normalise, read_head, windows

NO_MEANING = bytes(384)


def shipped() -> bytes:
    return resources.files("nsllm.governance").joinpath("data/toxicity.safetensors").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "You fucking moron, go to hell",
        "y0u 1d10t b1tch",
        "F U C K you",
        "f.u.c.k you bitch",
        "women are stupid whores",
        "sh\u0456t, you stupid \u0430sshole",  # Cyrillic i and a
        "shut up you pi\u00adece of sh\u200bit",  # soft hyphen, zero-width space
    ],
)
def test_toxic_wording_is_heard_through_its_disguises(text):
    assert default_head().wording_ppm(text) >= TOXICITY_MAX_PPM


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "Paris",
        "What is photosynthesis?",
        "How do I kill a process in Linux?",
        "What is breast cancer?",
        "I live in Scunthorpe.",
        "You are very helpful, thank you.",
        "def add(a, b):\n    return a + b",
        "SELECT * FROM users WHERE age > 18;",
        "1. Bananas\n2. Apples\n3. Oranges",
        "Why did the Nazis lose the war?",
    ],
)
def test_ordinary_text_passes(text):
    assert default_head().wording_ppm(text) < TOXICITY_MAX_PPM


def test_one_vile_sentence_in_a_long_text_counts_in_full():
    padding = "The water cycle moves water from the sea to the sky and back again. " * 40
    clean = default_head().wording_ppm(padding)
    assert clean < TOXICITY_MAX_PPM
    assert default_head().wording_ppm(f"{padding} You fucking idiot, you stupid bitch. {padding}") >= TOXICITY_MAX_PPM


def test_the_louder_head_counts_and_no_text_is_harmless():
    head = default_head()
    assert head.toxicity_ppm("", NO_MEANING) < TOXICITY_MAX_PPM
    along = bytes(127 if weight < 128 and weight else 129 if weight else 0 for weight in head.meaning)
    assert head.meaning_ppm(along) > 990_000
    assert head.toxicity_ppm("What is photosynthesis?", along) == head.meaning_ppm(along)
    with pytest.raises(ValueError, match="embedding of 3 bytes, expected 384"):
        head.meaning_ppm(b"abc")


@given(st.text(max_size=400), st.binary(min_size=384, max_size=384))
def test_any_text_gets_an_integer_between_0_and_a_million(text, embedding):
    score = default_head().toxicity_ppm(text, embedding)
    assert type(score) is int
    assert 0 <= score <= 1_000_000


@given(st.text(max_size=300))
def test_normalising_gives_lower_case_letters_and_settles(text):
    once = normalise(text)
    assert set(once) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert normalise(once) == once or len(normalise(once)) < len(once)


@given(st.integers(0, 2_000))
def test_windows_cover_the_whole_text(length):
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    found = list(windows(text))
    assert all(len(window) <= 240 for window in found)
    assert not text or found[-1].endswith(text[-1:])
    assert len(text) <= 120 * (len(found) + 1)


def test_the_rubric_pins_the_shipped_file_and_it_is_small():
    data = shipped()
    assert len(data) < MAX_HEAD_BYTES
    assert {rules.name: rules.digest for rules in built_in_rule_sets()}["toxicity"] == read_head(data).digest


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"", "not a safetensors file"),
        (lambda data: data[:-1], "not a safetensors file"),
        (lambda data: b"\xff" * 64, "not a safetensors file"),
        (lambda data: data + bytes(MAX_HEAD_BYTES), "the limit is"),
        (lambda data: data.replace(b"meaning.affine", b"meaning.affinf"), "meaning.affine is missing"),
    ],
)
def test_a_damaged_head_is_refused_by_name(spoil, message):
    with pytest.raises(PolicyError, match=message):
        read_head(spoil(shipped()))


def test_another_file_has_another_digest():
    data = bytearray(shipped())
    data[-1] ^= 1
    assert read_head(bytes(data)).digest != default_head().digest


def test_scores_are_the_same_in_a_process_with_another_hash_seed():
    texts = ["You fucking moron", "What is photosynthesis?", "ok"]
    program = (
        "import json, sys; from nsllm.governance.toxicity import default_head as d;"
        "print(json.dumps([d().wording_ppm(t) for t in json.loads(sys.argv[1])] + ['sklearn' in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, json.dumps(texts)],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(run.stdout) == [*(default_head().wording_ppm(text) for text in texts), False]
