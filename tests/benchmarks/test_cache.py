"""The reuse benchmark's own pieces: rules that keep a meaning, rules that change it, and what is counted."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cache_attack, cache_gptcache
from benchmarks.cache_latency import look_ups
from benchmarks.cache_records import Maker
from benchmarks.cache_stream import Embedded, best_fixed, near_miss_stream, play, play_fixed, upper95
from benchmarks.cache_workload import NEAR_MISSES, PARAPHRASES, Asked, Topic, apart
from nsllm.embedding import quantize_embedding

WORDS = {
    "antonym": {"old": "new"},
    "country": {"france": "spain"},
    "name": {"anna": "emma"},
    "british": {},
    "contraction": {},
}
RARE = ["bridge", "castle", "violin"]


def vector(seed: int) -> bytes:
    found = np.random.default_rng(seed).normal(size=384)
    return quantize_embedding((found / np.linalg.norm(found)).tolist())


@pytest.mark.parametrize(
    ("rule", "text", "missed"),
    [
        ("negated", "why is the bridge old", "why is not the bridge old"),
        ("negated", "is bread made of wheat", "is bread not made of wheat"),
        ("other asked", "who built the bridge", "when built the bridge"),
        ("opposite", "how old is it", "how new is it"),
        ("other country", "where in france", "where in spain"),
        ("other name", "who is anna", "who is emma"),
        ("roles", "bridge of castle", "castle of bridge"),
        ("other number", "two bridges", "three bridges"),
    ],
)
def test_near_misses_ask_for_something_else(rule: str, text: str, missed: str) -> None:
    assert NEAR_MISSES[rule](text, random.Random(1), WORDS, RARE) == missed


def test_paraphrases_keep_the_meaning() -> None:
    rng = random.Random(1)
    assert PARAPHRASES["shape"]("who wrote hamlet", rng, WORDS) in {
        "who is the author of hamlet",
        "hamlet was written by whom",
    }
    assert PARAPHRASES["spelled number"]("two bridges", rng, WORDS) == "2 bridges"
    assert PARAPHRASES["shape"]("bridges", rng, WORDS) is None


def test_real_questions_that_share_their_words_are_no_near_misses_of_each_other() -> None:
    one = Asked("who built the tower bridge london", "1", "original nq", frozenset({"jones"}))
    two = Asked("who built tower bridge in london", "2", "original nq", frozenset({"jones"}))
    unlabelled = Asked("tower bridge london built", "3", "original boolq")
    kept, crowded = apart([one, two, unlabelled])
    assert kept == [one, two]
    assert crowded == {one.text, two.text}
    assert one.same(two)


def test_a_stream_is_played_by_the_policy_and_by_thresholds() -> None:
    original = Asked("why is the sky blue in summer", "sky", "original")
    like = Asked("Why is the sky blue in summer?", "sky", "paraphrase: case")
    miss = Asked("why is the sky not blue in summer", "other", "near miss: negated")
    stream = [original, original, like, miss]
    embedded = Embedded(stream, {asked.text: vector(1) for asked in stream})  # an encoder that hears no difference
    run = play(embedded, 20_000, 1)
    assert (run.exact, run.hits, run.wrong, run.doubts["negation"]) == (1, 1, 0, 1)
    plain, guarded = (play_fixed(embedded, 0.9, guarded=guards) for guards in (False, True))
    assert (plain.hits, plain.wrong) == (2, 1)
    assert (guarded.hits, guarded.wrong) == (1, 0)
    assert best_fixed(embedded, [0.9], 0.02, guarded=False)[1].true_hits == 0  # half of its hits are wrong


SKY = Asked("why is the sky blue in summer", "sky", "original")
LIKE = Asked("Why is the sky blue in summer?", "sky", "paraphrase: case")
MISS = Asked("why is the sky not blue in summer", "other", "near miss: negated")


def test_what_gptcache_served_is_counted_as_ours_is() -> None:
    run = cache_gptcache.counted([SKY, SKY, LIKE, MISS, MISS], [None, 0, 0, 0, None])
    assert (run.exact, run.hits, run.wrong, run.true_hits) == (1, 2, 1, 1)


def test_gptcache_is_left_out_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_gptcache, "PYTHON", tmp_path / "nowhere")
    with cache_gptcache.running(Embedded([SKY], {SKY.text: vector(1)})) as opponent:
        assert opponent.rows() == []
    assert "make bench-setup" in capsys.readouterr().err


def test_gptcache_hears_the_stream_with_its_vectors_and_is_heard_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{PARROT}", "utf-8")
    program.chmod(0o700)
    monkeypatch.setattr(cache_gptcache, "PYTHON", program)
    with cache_gptcache.running(Embedded([SKY, LIKE, SKY, MISS], {a.text: vector(1) for a in (SKY, LIKE, MISS)})) as it:
        rows = it.rows()
    assert [(row["threshold"], row["cosine"]) for row in rows] == [(0.8, 0.6), (0.9, 0.8), (0.95, 0.9)]
    assert {(row["exact_hits"], row["semantic_hits"], row["wrong_hits"]) for row in rows} == {(1, 2, 1)}


PARROT = """
import base64, json, sys
plan = json.loads(sys.stdin.readline())
flat = base64.b64decode(plan["vectors"])
assert len(flat) == 384 * len(plan["texts"]), "a vector a text"
vectors = [flat[384 * text:384 * text + 384] for text in plan["stream"]]
answers = [vectors.index(vector) if vector in vectors[:at] else None for at, vector in enumerate(vectors)]
print(json.dumps([answers for _ in plan["thresholds"]]))
"""
"""What stands in for it serves the first question with the same vector."""


def test_topics_are_asked_in_all_ways() -> None:
    topic = Topic(Asked("a", "a", "original"), [Asked("b", "a", "paraphrase")], [Asked("c", "c", "near miss")])
    kinds = {asked.kind for asked in near_miss_stream([topic], 60, random.Random(1))}
    assert kinds == {"original", "paraphrase", "near miss"}


def test_the_bound_on_a_share_is_wilsons() -> None:
    assert upper95(0, 300) == pytest.approx(0.0089, abs=1e-4)
    assert upper95(10, 1000) == pytest.approx(0.0165, abs=2e-4)


def test_poison_is_of_three_kinds() -> None:
    rng, others = random.Random(1), ["Bats are not blind at all.", "Glass is clear."]
    assert cache_attack.spoil("off topic", others[0], others, rng) == others[1]
    assert len(cache_attack.spoil("incoherent", others[0], others, rng).split()) == 25
    assert cache_attack.spoil("by rule", others[1], others, rng) == "Glass is not clear."


def test_lies_by_hand_have_a_question_and_a_right_answer_of_their_own() -> None:
    rows = cache_attack.by_hand()
    assert len({question for question, _, _ in rows}) == len(rows) == 20
    assert all(answer != lie and min(len(answer.split()), len(lie.split())) >= 5 for _, answer, lie in rows)


async def test_look_ups_are_timed_in_a_store_whose_records_verify() -> None:
    texts = [
        f"why is the {thing} of the sea so blue in summer" for thing in ("water", "light", "colour", "wave", "foam")
    ]
    vectors = np.stack([np.frombuffer(vector(number), np.int8) / 127 for number in range(5)])
    figures = await look_ups(Maker(), texts, vectors, 12)
    assert figures["records"] == 12
    assert all(
        figures[f"{kind}_{name}"] > 0 for kind in ("exact", "semantic") for name in ("p50_ms", "p99_ms", "cpu_ms")
    )


def test_what_is_made_for_the_store_is_certified() -> None:
    make = Maker()
    records = list(make.records((f"question {number}", vector(number)) for number in range(11)))
    assert len({record.certificate for record in records}) == 2
    for record in records:
        record.check(make.context.network_id, make.context.validators)
