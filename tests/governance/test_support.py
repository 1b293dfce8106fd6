"""Support counts what the evidence says of an answer, sentence by sentence."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.governance.support import MOST_CLAIMS, MOST_PIECES, claims, evidence_claims, support_ppm

vectors = (
    st.lists(st.floats(-1, 1), min_size=4, max_size=4)
    .filter(lambda v: math.hypot(*v) > 0.1)
    .map(lambda v: tuple(x / math.hypot(*v) for x in v))
)
several = st.lists(vectors, min_size=1, max_size=6)


@given(several, several)
def test_more_evidence_never_supports_less(said, evidence) -> None:
    some = support_ppm(said, evidence[:1])
    assert -1_000_000 <= some <= support_ppm(said, evidence) <= 1_000_000


@given(several, several)
def test_what_stands_in_the_evidence_is_supported(said, evidence) -> None:
    assert support_ppm(said, [*evidence, *said]) >= 999_999
    assert support_ppm(said, evidence) == pytest.approx(
        sum(support_ppm([one], evidence) for one in said) / len(said), abs=2
    )


@given(st.text(st.sampled_from("ab .!\n"), min_size=1, max_size=200))
def test_sentences_are_all_of_the_text_in_its_order(text) -> None:
    found = claims(text)
    assert 1 <= len(found) <= MOST_CLAIMS
    if len(found) < MOST_CLAIMS:
        assert "".join("".join(found).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Yes. It was built in 1871. Of granite.", ("Yes. It was built in 1871. Of granite.",)),
        ("Yes.", ("Yes.",)),
        ("It was built in 1871.\nOf red granite!", ("It was built in 1871.", "Of red granite!")),
        ("It was built in 1871. No.", ("It was built in 1871. No.",)),
    ],
)
def test_short_ones_go_with_their_neighbours(text, found) -> None:
    assert claims(text) == found


def test_the_work_is_bounded() -> None:
    assert len(claims("This is a sentence. " * 100)) == MOST_CLAIMS
    assert len(evidence_claims(["This is a sentence. " * 100] * 32)) == MOST_PIECES
