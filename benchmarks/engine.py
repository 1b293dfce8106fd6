"""How fast the engine is, and how good, beside what people would run instead: llama.cpp and transformers.

Same machine, same model, same threads, in one run: every contestant is a process of its own, they take turns at each
task after a warm-up, and medians count. llama.cpp shows its best: each of its formats (Q8_0, Q4_0, BF16), with the
attention and batch settings that are quickest at the task. Ratios are theirs to ours: above 1 we are faster. CPU times
stand beside wall times, because other programs on the machine change wall times more.

    make bench-setup
    python -m benchmarks.engine --quick --json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks import goals, limit, material
from benchmarks.contestants.process import Process, started
from benchmarks.measuring import Task, Timing, compare
from benchmarks.report import at_end, facts, machine, table
from benchmarks.whole_engine import STREAMS, SYSTEM_TOKENS, Models, whole_engine
from nsllm.node.engine.fast.chat import ChatText
from nsllm.node.engine.models import default_home, ensure_default_models

WINDOW_TOKENS: Final = 513
PREFILL_TOKENS: Final = 512
DECODE_STREAMS: Final = (1, 8, 32, 64)
MORE_STEPS: Final = {1: 8, 8: 4}
QUIET_LOAD: Final = 1.0
"""Up to this load average nobody disturbs threads that wait in a loop."""
OURS: Final = "nsllm"
Q8: Final = "llama.cpp Q8_0"
FASTEST: Final = "llama.cpp Q4_0"
EAGER: Final = "transformers"
HASTY: Final = {Q8: {"streams1"}, EAGER: {"streams1"}}
"""Tasks of those who are never the quickest elsewhere, where time is short."""
PROMPT_TOKENS: Final = 48
GENERATE_PROMPT_TOKENS: Final = 8


@dataclass(frozen=True)
class Effort:
    """How long everything is measured."""

    rounds: int
    steps: int
    """Of decoding, in a turn of 32 or 64 streams; of fewer streams more."""
    windows: int
    """Of text, for perplexities."""
    read_at_once: int
    """Of a window's tokens; the others are read one by one."""
    generated_tokens: int
    """A stream, in the comparison with `generate_batch`."""
    generate_rounds: int
    worker_rounds: int
    systems: int
    thorough: bool
    """Whether every setting of an opponent is tried, or those that ever won."""


FULL: Final = Effort(
    rounds=9,
    steps=4,
    windows=40,
    read_at_once=256,
    generated_tokens=48,
    generate_rounds=5,
    worker_rounds=5,
    systems=7,
    thorough=True,
)
QUICK: Final = Effort(
    rounds=5,
    steps=1,
    windows=1,
    read_at_once=496,
    generated_tokens=8,
    generate_rounds=1,
    worker_rounds=1,
    systems=3,
    thorough=False,
)


def commands(models: Models, threads: int, gguf: Mapping[str, Path]) -> dict[str, list[str]]:
    """How each contestant is started."""
    ours = [sys.executable, "-m"]
    text = ["--text", str(models.text), "--threads", str(threads)]
    theirs = [str(material.BENCH_PYTHON), "-m", "benchmarks.contestants.llamacpp", "--threads", str(threads)]
    return {
        OURS: [*ours, "benchmarks.contestants.fast", "--encoder", str(models.encoder), *text],
        **{f"llama.cpp {name}": [*theirs, "--gguf", str(path)] for name, path in gguf.items()},
        EAGER: [*ours, "benchmarks.contestants.eager", *text],
    }


def tasks(effort: Effort) -> dict[str, Task]:
    """What all of them do."""
    found = {}
    for count in DECODE_STREAMS:
        steps = effort.steps * MORE_STEPS.get(count, 1)
        details = {"streams": count, "steps": steps}
        found[f"streams{count}"] = Task(f"decode, {count} streams", "decode", details, steps)
    return found | {"prefill": Task(f"read {PREFILL_TOKENS} tokens", "prefill", {"tokens": PREFILL_TOKENS})}


def run(models: Models, gguf: Mapping[str, Path], threads: int, effort: Effort) -> dict[str, Any]:
    """All figures. Blocks for a minute (quick) or ten."""
    about = machine() | {"threads": threads}
    chat = ChatText(models.text)
    windows = material.windows(chat.tokens, max(effort.windows, *DECODE_STREAMS), WINDOW_TOKENS)
    timings: dict[str, list[Timing]] = {}
    around: dict[str, limit.Limit] = {}
    most = limit.measure(threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        chosen = commands(models, threads, gguf)
        busy = effort.thorough or os.getloadavg()[0] > QUIET_LOAD
        waiting = quickest_waiting(chosen, windows, Path(folder)) if threads > 1 and busy else ""
        contestants = [
            stack.enter_context(started(name, command, windows, Path(folder), "" if name == OURS else waiting))
            for name, command in chosen.items()
        ]
        for one in contestants:
            one.about = one.hear()["about"]
        for key, task in tasks(effort).items():
            present = [one for one in contestants if effort.thorough or key in HASTY.get(one.name, {key})]
            timings[key] = compare(task, present, effort.rounds, thorough=effort.thorough)
            around[key], most = most.or_more(after := limit.measure(threads)), after
        generate = Task(
            f"{STREAMS} prompts of {GENERATE_PROMPT_TOKENS} tokens, {effort.generated_tokens} tokens each",
            "generate",
            {"streams": STREAMS, "prompt_tokens": GENERATE_PROMPT_TOKENS, "tokens": effort.generated_tokens},
        )
        pair = [contestants[0], contestants[-1]]
        timings["generate"] = compare(generate, pair, effort.generate_rounds, thorough=False)
        around["generate"] = most.or_more(limit.measure(threads))
        perplexities = {one.name: _perplexity(one, effort) for one in contestants}
        abouts = {one.name: one.about for one in contestants}
    prompts = list(material.prompts(chat.tokens, chat.text, PROMPT_TOKENS))
    systems = [f"{number}. {chat.text(windows[-1 - number][:SYSTEM_TOKENS])}" for number in range(effort.systems)]
    worker = whole_engine(models, threads, prompts, systems, effort.worker_rounds)
    found = figures(timings, perplexities) | worker
    return {
        **found,
        **shares(timings, limit.Work.of_folder(models.text), around, effort),
        "goals": goals.judged(goals.ENGINE, found),
        "perplexity_tokens": effort.windows * (WINDOW_TOKENS - 1),
        "contestants": abouts,
        "opponents_wait": waiting or "as OpenMP does",
        "machine": about | at_end(),
        "timings": [asdict(timing) for rows in timings.values() for timing in rows],
    }


def quickest_waiting(
    chosen: Mapping[str, Sequence[str]], texts: Sequence[Sequence[int]], folder: Path
) -> Literal["", "passive"]:
    """How the opponents' threads had better wait for each other: in a loop, or, on a busy machine, asleep.

    llama.cpp's fastest format tells; without it OpenMP decides.
    """
    if FASTEST not in chosen:
        return ""
    seconds: dict[Literal["", "passive"], float] = {}
    ways: tuple[Literal["", "passive"], ...] = ("", "passive")
    for waiting in ways:
        with started(FASTEST, chosen[FASTEST], texts, folder, waiting) as one:
            one.hear()
            turns = [one.ask("decode", streams=8, steps=2, settings="fa") for _ in range(3)]
            seconds[waiting] = statistics.median(turn["wall_s"] for turn in turns)
    return min(ways, key=lambda waiting: seconds[waiting])


def figures(timings: Mapping[str, Sequence[Timing]], perplexities: Mapping[str, float]) -> dict[str, Any]:
    """The figures that stand for the whole; None where an opponent was left out."""
    ours = timings["streams1"][0]
    best = {key: _best(rows) for key, rows in timings.items()}
    found: dict[str, Any] = {
        "single_stream_ms": ours.wall_ms,
        "single_stream_vs_llamacpp_q8": _ratio(ours, _of(timings["streams1"], Q8)),
        "single_stream_vs_llamacpp_best": _ratio(ours, best["streams1"]),
        **{f"streams{n}_vs_llamacpp_best": _ratio(timings[f"streams{n}"][0], best[f"streams{n}"]) for n in (8, 32, 64)},
        "prefill_vs_llamacpp_best": _ratio(timings["prefill"][0], best["prefill"]),
        **{
            f"{key}_vs_llamacpp_best_cpu": _ratio(timings[key][0], _best(timings[key], "cpu_ms"), "cpu_ms")
            for key in ("streams1", "streams8", "streams32", "streams64", "prefill")
        },
        "streams32_vs_generate_batch": _ratio(timings["generate"][0], timings["generate"][1]),
        **{
            f"{key}_vs_transformers": _ratio(rows[0], _of(rows, EAGER))
            for key, rows in timings.items()
            if key != "generate"
        },
        **{f"{key}_tokens_per_s": timings[key][0].tokens_per_s for key in ("streams8", "streams32", "streams64")},
        "prefill_tokens_per_s": timings["prefill"][0].tokens_per_s,
        **{f"{key}_llamacpp_best": row and row.who for key, row in best.items() if key != "generate"},
    }
    reference = perplexities[EAGER]
    wins = [row.who for row in best.values() if row is not None]
    favourite = max(sorted(set(wins)), key=wins.count) if wins else None
    found["perplexity_bf16"] = reference
    found["perplexity_int8_over_bf16"] = perplexities[OURS] / reference
    found["perplexity_llamacpp_best_over_bf16"] = None if favourite is None else perplexities[favourite] / reference
    found["perplexity_over_bf16"] = {name: value / reference for name, value in perplexities.items()}
    return found


def shares(
    timings: Mapping[str, Sequence[Timing]], work: limit.Work, around: Mapping[str, limit.Limit], effort: Effort
) -> dict[str, Any]:
    """How much of what this machine can do at most ours uses, by the linear layers alone; attention is on top.

    `around` has the limit by task, the more of what was measured before and after it.
    """
    whole = STREAMS * (work.prefill(GENERATE_PROMPT_TOKENS) + work.decode(effort.generated_tokens))
    gops = {f"streams{n}": work.decode(n) for n in (8, 32, 64)} | {"prefill": work.prefill(PREFILL_TOKENS)}
    reads_gb = (work.layers + work.head) / 2 / 1e9  # a byte a weight
    return {
        "machine_int8_gops": max(most.int8_gops for most in around.values()),
        "machine_read_gb_per_s": max(most.read_gb_per_s for most in around.values()),
        "streams1_share_of_read_limit": reads_gb
        / (timings["streams1"][0].wall_ms / 1000)
        / around["streams1"].read_gb_per_s,
        **{
            f"{key}_share_of_int8_limit": needed / (timings[key][0].wall_ms / 1000) / around[key].int8_gops
            for key, needed in gops.items()
        },
        "streams32_vs_generate_batch_at_limit": timings["generate"][1].wall_ms
        / 1000
        / (whole / around["generate"].int8_gops),
    }


def _perplexity(one: Process, effort: Effort) -> float:
    settings = one.ask("settings", of="perplexity", thorough=False)["settings"][0]
    found = one.ask("perplexity", windows=effort.windows, read_at_once=effort.read_at_once, settings=settings)
    print(f"perplexity: {one.name} {math.exp(found['loss'] / found['count']):.3f}", file=sys.stderr, flush=True)
    return math.exp(found["loss"] / found["count"])


def _of(rows: Sequence[Timing], who: str) -> Timing | None:
    return next((row for row in rows if row.who == who), None)


def _best(rows: Sequence[Timing], field: str = "wall_ms") -> Timing | None:
    """llama.cpp's quickest format."""
    return min(
        (row for row in rows if row.who.startswith("llama.cpp")), key=lambda row: getattr(row, field), default=None
    )


def _ratio(ours: Timing, theirs: Timing | None, field: str = "wall_ms") -> float | None:
    return None if theirs is None else float(getattr(theirs, field) / getattr(ours, field))


def markdown(result: Mapping[str, Any]) -> str:
    """The timings, then the figures."""
    apart = {"timings", "goals", "machine", "contestants"}
    rest = {name: value for name, value in result.items() if name not in apart}
    parts = [table(result["timings"]), table(result["goals"]), facts(rest), facts(result["machine"])]
    parts.append(facts(result["contestants"]))
    return "\n\n".join(parts)


def main() -> int:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of Markdown")
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer rounds, little text for perplexity")
    parser.add_argument("--threads", type=int, default=2, help="of every contestant (default: 2)")
    parser.add_argument("--text", type=Path, help="folder of another model of the Llama family; without llama.cpp")
    parser.add_argument("--no-llamacpp", action="store_true", help="without llama.cpp; its figures are null")
    options = parser.parse_args()
    default = ensure_default_models(default_home(os.environ), lambda _progress: None)
    models = Models(options.text or default.text, default.encoder)
    gguf: dict[str, Path] = {}
    if not options.no_llamacpp and options.text is None:
        if not material.BENCH_PYTHON.is_file():
            parser.error("llama.cpp is not built: run `make bench-setup`, or leave it out with --no-llamacpp")
        gguf = material.model_files()
    result = run(models, gguf, options.threads, QUICK if options.quick else FULL)
    print(json.dumps(result, indent=1) if options.json else markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
