"""A cache with semantic reuse under a stream of questions, in virtual time: no network, no model, the shipped policy.

Each request: an exact repeat is served; else the policy chooses among the nearest records, or fixed thresholds do; what
is generated becomes a record, and its gold label what is learned. One question a second, so timely answers expire.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from benchmarks.cache_workload import Asked, Topic
from nsllm.cache_dht.calibration import shipped
from nsllm.cache_dht.guards import objection
from nsllm.cache_dht.index import SemanticIndex
from nsllm.cache_dht.observations import Tally
from nsllm.cache_dht.reuse import NEIGHBOURS, Candidate, SemanticReuse
from nsllm.embedding import quantize_embedding
from nsllm.ids import Address, Digest

PEER: Final = Address(bytes(20))
ZIPF: Final = 0.8
ORIGINALS, PARAPHRASES = 0.35, 0.35
"""Shares of requests that ask a topic as it stands and in other words; the rest are near misses."""
PACE_MS: Final = 1000
Z95: Final = 1.6449
"""One-sided 95 % quantile of the normal distribution."""


@dataclass(slots=True)
class Run:
    """What one way of choosing did with a stream."""

    hits: int = 0
    wrong: int = 0
    exact: int = 0
    doubts: Counter[str] = field(default_factory=Counter)
    wrong_kinds: Counter[str] = field(default_factory=Counter)

    @property
    def true_hits(self) -> int:
        """Semantic hits whose answer was right."""
        return self.hits - self.wrong

    def figures(self) -> dict[str, Any]:
        """Hits, wrong ones and their shares; None without a hit."""
        return {
            "semantic_hits": self.hits,
            "true_hits": self.true_hits,
            "wrong_hits": self.wrong,
            "wrong_hit_rate": self.wrong / self.hits if self.hits else None,
            "wrong_hit_upper95": upper95(self.wrong, self.hits) if self.hits else None,
        }


def upper95(wrong: int, of: int) -> float:
    """One-sided upper 95 % bound on a share (Wilson's score interval)."""
    share, z = wrong / of, Z95
    middle = share + z * z / (2 * of)
    spread = z * float(np.sqrt(share * (1 - share) / of + z * z / (4 * of * of)))
    return (middle + spread) / (1 + z * z / of)


def near_miss_stream(topics: Sequence[Topic], requests: int, rng: random.Random) -> list[Asked]:
    """Topics by Zipf's law; each request asks one as it stands, in other words, or for something else in like words."""
    weights = [1 / (rank + 1) ** ZIPF for rank in range(len(topics))]
    stream: list[Asked] = []
    for topic in rng.choices(topics, weights, k=requests):
        lot = rng.random()
        if lot < ORIGINALS or not (topic.paraphrases or topic.near_misses):
            stream.append(topic.original)
        elif (lot < ORIGINALS + PARAPHRASES and topic.paraphrases) or not topic.near_misses:
            stream.append(rng.choice(topic.paraphrases))
        else:
            stream.append(rng.choice(topic.near_misses))
    return stream


class Embedded:
    """Embeddings of all texts of a stream, quantized as records carry them."""

    def __init__(self, stream: Sequence[Asked], vectors: dict[str, bytes]) -> None:
        self.stream = stream
        self.of = vectors


def quantized(vectors: np.ndarray) -> list[bytes]:
    """Unit vectors as records carry them."""
    return [quantize_embedding(vector.tolist()) for vector in vectors]


def play(embedded: Embedded, limit_ppm: int, seed: int) -> Run:
    """The shipped policy from its shipped beginning."""
    run = Run()
    policy = SemanticReuse(shipped(), Tally(), PEER, random.Random(seed))
    index, stored, exact = SemanticIndex(), [], set[str]()
    for now, asked in enumerate(embedded.stream):
        if asked.text in exact:
            run.exact += 1
            continue
        embedding = embedded.of[asked.text]
        candidates = [
            Candidate(
                Digest(near.row.to_bytes(32, "big")),
                stored[near.row][0].text,
                str(near.row),
                PEER,
                embedded.of[stored[near.row][0].text],
                near.cosine,
                (now - stored[near.row][1]) * PACE_MS,
            )
            for near in index.search(embedding, NEIGHBOURS)
        ]
        choice = policy.choose(asked.text, candidates, limit_ppm, lambda _one, _other: True)
        best = stored[int(choice.best.candidate.answer)][0] if choice.best is not None else None
        if choice.doubt is None:
            assert best is not None
            run.hits += 1
            if not best.same(asked):
                run.wrong += 1
                run.wrong_kinds[f"{asked.kind} / {best.kind}"] += 1
            continue
        run.doubts[choice.doubt] += 1
        if choice.best is not None and best is not None:
            policy.observe(choice.best, right=best.same(asked))
        index.add([(len(stored), embedding)])
        exact.add(asked.text)
        stored.append((asked, now))
    return run


def play_fixed(embedded: Embedded, threshold: float, *, guarded: bool) -> Run:
    """A threshold on the cosine, as other semantic caches have it; perhaps behind our guards."""
    run = Run()
    index, stored, exact = SemanticIndex(), [], set[str]()
    for now, asked in enumerate(embedded.stream):
        if asked.text in exact:
            run.exact += 1
            continue
        embedding = embedded.of[asked.text]
        found = [near for near in index.search(embedding, NEIGHBOURS) if near.cosine >= threshold]
        if guarded:
            found = [
                n
                for n in found
                if objection(asked.text, stored[n.row][0].text, (now - stored[n.row][1]) * 1000) is None
            ]
        if found:
            run.hits += 1
            run.wrong += not stored[found[0].row][0].same(asked)
            continue
        index.add([(len(stored), embedding)])
        exact.add(asked.text)
        stored.append((asked, now))
    return run


def best_fixed(embedded: Embedded, thresholds: Sequence[float], share: float, *, guarded: bool) -> tuple[float, Run]:
    """The threshold with the most true hits of those that stay below `share` of wrong ones, chosen in hindsight."""
    runs = [(threshold, play_fixed(embedded, threshold, guarded=guarded)) for threshold in thresholds]
    kept = [(threshold, run) for threshold, run in runs if not run.hits or run.wrong / run.hits < share]
    return max(kept, key=lambda pair: pair[1].true_hits, default=(1.0, Run()))
