"""Agreement: decisions and scores a second, latency, messages, bytes and CPU time; then real answers, and disk.

Validators are processes on loopback (`benchmarks.validator`): the peer's own consensus stack over libp2p, every vote
and block synced to disk, with a stand-in in the language model's place that scores at once. Latency is measured one
answer at a time, from submission to the moment its generator holds the certificate; rates under load. Then whole
networks in memory, a devnet that scores real answers with the real models, and the growth of the databases.

    python -m benchmarks.consensus --quick --json
    python -m benchmarks.consensus
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from benchmarks import goals, in_memory, real_answers, validators
from benchmarks.report import at_end, facts, machine, table
from benchmarks.serving import quantile

SIZES: Final = (4, 7, 16)
IN_MEMORY: Final = (4, 7, 16, 32)
NESTED: Final = {"goals", "machine", "memory", "disk_mb_by_table"}
PER_SIZE: Final = (
    "p50_ms",
    "p99_ms",
    "answers",
    "decisions_per_s",
    "scores_per_s",
    "messages_per_decision",
    "writes_per_decision",
    "wire_kb_per_decision",
    "cpu_ms_per_decision",
    "cpu_split",
)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    sizes: tuple[int, ...]
    """Numbers of validators."""
    answers: Mapping[int, int]
    """One at a time, by number of validators."""
    seconds: float
    """Of each load."""
    rounds: int
    """Loads of each kind; their median counts."""
    splits: bool
    """Whether CPU time is counted by kind of work, under loads of their own."""
    paced: int
    """Real answers, one a second."""
    busy_s: float
    """Of the load of real answers."""
    memory: bool
    """Whether whole networks run in this process."""
    disk: tuple[int, int]
    """Answers before the databases are measured first and last."""
    real_by_s: float = math.inf
    disk_by_s: float = math.inf
    """What would begin later than this after the start is left out: a busy machine makes a quick run no longer."""


FULL: Final = Extent(
    sizes=SIZES,
    answers={4: 200, 7: 70, 16: 32},
    seconds=6.0,
    rounds=3,
    splits=True,
    paced=30,
    busy_s=30.0,
    memory=True,
    disk=(20, 60),
)
QUICK: Final = Extent(
    sizes=(4,),
    answers={4: 40, 7: 21, 16: 16},
    seconds=3.0,
    rounds=1,
    splits=False,
    paced=4,
    busy_s=6.0,
    memory=False,
    disk=(4, 12),
    real_by_s=28.0,
    disk_by_s=46.0,
)
REAL: Final = ("real_answers_scored_per_s", "real_certificate_p50_ms")


def among(count: int, extent: Extent) -> dict[str, Any]:
    """Figures of `count` validators; rates are medians of several loads."""
    answers, seconds, rounds = extent.answers[count], extent.seconds, extent.rounds
    with validators.running(count) as network:
        network.latencies_s(count)  # the first ones open streams
        before = network.counted()
        latencies_ms = [took * 1000 for took in network.latencies_s(answers)]
        alone = validators.between(before, network.counted())
        one = [network.load(seconds, batch=1, lanes=1) for _ in range(rounds)]
        scores = partial(network.load, seconds, batch=validators.BATCH, lanes=validators.LANES[count])
        many = [scores() for _ in range(rounds)]
        tasks = (partial(network.latencies_s, max(count, answers // 4)), scores)
        splits = [network.split(task) if extent.splits else None for task in tasks]
    found = {
        "p50_ms": quantile(latencies_ms, 0.5),
        "p99_ms": quantile(latencies_ms, 0.99),
        "answers": len(latencies_ms),
        "decisions_per_s": statistics.median(load["decisions_per_s"] for load in one),
        "scores_per_s": statistics.median(load["scores_per_s"] for load in many),
        **{name: alone[name] for name in PER_SIZE if name in alone and name.endswith("_per_decision")},
        "cpu_split": splits[0],
        "scores_cpu_split": splits[1],
        "scores_cpus": statistics.median(load["cpus"] for load in many),
        "scores_cpu_ms": statistics.median(load["cpu_ms_per_score"] for load in many),
    }
    said = f"{found['p50_ms']:.0f} ms, {found['decisions_per_s']:.1f} decisions/s, {found['scores_per_s']:.0f} scores/s"
    print(f"{count} validators: {said}", file=sys.stderr, flush=True)
    return found


def flat(sizes: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """`n4.p50_ms` and so on; None for sizes that were left out."""
    found: dict[str, Any] = {}
    for count in SIZES:
        figures = sizes.get(count)
        names = PER_SIZE if figures is None else tuple(figures)
        found |= {f"n{count}.{name}": None if figures is None else figures[name] for name in names}
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The figures, as people read them."""
    plain = {name: value for name, value in result.items() if name not in NESTED and not name.endswith("cpu_split")}
    parts = [table(result["goals"]), facts(plain), "CPU time by kind of work:", split_table(result)]
    if result["memory"]:
        parts += ["In memory:", table(result["memory"])]
    if result["disk_mb_by_table"]:
        parts += ["Disk by table, MB in 1,000 answers:", facts(_largest(result["disk_mb_by_table"]))]
    return "\n\n".join([*parts, facts(result["machine"])])


def split_table(result: Mapping[str, Any]) -> str:
    """Shares of CPU time, a column a load."""
    splits = {
        f"n{count}, {words}": result[f"n{count}.{name}"]
        for count in SIZES
        for name, words in (("cpu_split", "one by one"), ("scores_cpu_split", "many scores"))
        if result.get(f"n{count}.{name}")
    }
    if not splits:
        return "no data"
    kinds = sorted({kind for split in splits.values() for kind in split})
    rows = [{"work": kind, **{name: f"{split.get(kind, 0):.0%}" for name, split in splits.items()}} for kind in kinds]
    return table(rows)


def _largest(tables: Mapping[str, float]) -> dict[str, float]:
    return {name: size for name, size in list(tables.items())[:8] if size > 0}


def _memory(sizes: Sequence[int], answers: int) -> list[dict[str, Any]]:
    return [{"validators": count, **in_memory.agreed(count, answers)} for count in sizes]


def main() -> int:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of Markdown")
    parser.add_argument("--quick", action="store_true", help="four validators only, fewer answers: less than a minute")
    parser.add_argument("--without-models", action="store_true", help="leave the devnet with real models out")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, help="numbers of validators, instead of all")
    options = parser.parse_args()
    extent = QUICK if options.quick else FULL
    about, began = machine(), time.perf_counter()

    def told(what: str) -> float:
        """Seconds since the start, which standard error hears of."""
        seconds = time.perf_counter() - began
        print(f"{seconds:.0f} s: {what}", file=sys.stderr, flush=True)
        return seconds

    wanted = options.sizes or extent.sizes
    sizes = {count: among(count, extent) for count in wanted if count == min(SIZES)}
    real: dict[str, Any] = dict.fromkeys(REAL)
    if told("real answers") < extent.real_by_s and not options.without_models:  # what has goals comes first
        real = real_answers.measured(1.0, extent.paced, extent.busy_s)
    sizes |= {count: among(count, extent) for count in wanted if count not in sizes}
    result: dict[str, Any] = flat(sizes)
    result["memory"] = _memory(IN_MEMORY, 6) if extent.memory else []
    left_out = told("disk") >= extent.disk_by_s
    result |= {"disk_mb_per_1000_answers": None, "disk_mb_by_table": {}} if left_out else in_memory.disk(*extent.disk)
    result |= real
    told("done")
    result["goals"] = goals.judged(goals.CONSENSUS, result)
    result["machine"] = about | at_end()
    print(json.dumps(result, indent=1) if options.json else markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
