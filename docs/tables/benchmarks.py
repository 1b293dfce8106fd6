"""What the last runs of the benchmarks found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def benchmark_results() -> str:
    """Of the engine, then of serving; each with its machine."""
    engine, serving, consensus = (
        json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in ("engine", "serving", "consensus")
    )
    parts = ["### The engine", _machine(engine), _timings(engine["timings"]), _goals(engine["goals"])]
    parts += [_perplexities(engine["perplexity_over_bf16"], engine["perplexity_tokens"])]
    parts += [_limits(engine)]
    parts += ["### Serving", _machine(serving), _goals(serving["goals"]), _load(serving)]
    if (RESULTS / "cache.json").is_file():
        cache = json.loads((RESULTS / "cache.json").read_text("utf-8"))
        parts += ["### Reuse", _machine(cache), _goals(cache["goals"]), _fixed(cache), _hijacks(cache), _load(cache)]
    if (RESULTS / "dht.json").is_file():
        dht = json.loads((RESULTS / "dht.json").read_text("utf-8"))
        parts += ["### Look-ups", _machine(dht), _goals(dht["goals"]), _look_ups(dht), _simulated(dht["simulated"])]
    parts += ["### Agreement", _machine(consensus), _goals(consensus["goals"]), _agreement(consensus)]
    parts += [_cpu_split(consensus), _rest(consensus), _memory(consensus["memory"]), _disk(consensus)]
    return "\n\n".join(part for part in parts if part)


def _machine(result: Mapping[str, Any]) -> str:
    about = result["machine"]
    loads = [", ".join(f"{load:.1f}" for load in about[f"load_at_{end}"]) for end in ("start", "end")]
    hardware = f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, {about['system']}"
    software = f"Python {about['python']}, torch {about['torch']}, transformers {about['transformers']}"
    load = f"load {loads[0]} at the start and {loads[1]} at the end"
    if "python_loop_ms" in about:
        load += f", a plain loop {about['python_loop_ms'][1]} and {about['python_loop_ms_at_end'][1]} ms"
    return f"{hardware}; {software}; {load}; {about['date']}, `{about['command']}`."


def _timings(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| task | who | settings | ms | CPU ms | tokens/s |", "|---|---|---|---:|---:|---:|"]
    for row in rows:
        numbers = f"{row['wall_ms']:.1f} | {row['cpu_ms']:.1f} | {row['tokens_per_s']:,.0f}"
        lines.append(f"| {row['task']} | {row['who']} | {row['settings']} | {numbers} |")
    return "\n".join(lines)


def _goals(rows: Sequence[Mapping[str, Any]]) -> str:
    met = {True: "yes", False: "no", None: "-"}
    lines = ["| figure | measured | goal | met |", "|---|---:|---|---|"]
    lines += [f"| `{row['figure']}` | {_number(row['value'])} | {row['goal']} | {met[row['met']]} |" for row in rows]
    return "\n".join(lines)


def _perplexities(ratios: Mapping[str, float], tokens: int) -> str:
    said = ", ".join(f"{who} {ratio:.4f}" for who, ratio in ratios.items())
    return f"Perplexity over that of bf16, on {tokens:,} tokens: {said}."


def _limits(result: Mapping[str, Any]) -> str:
    """How near ours is to what the machine can do."""
    if "machine_int8_gops" not in result:
        return ""
    names = [name for name in result if name.startswith("machine_") or "_limit" in name]
    lines = ["| beside the machine's limit | measured |", "|---|---:|"]
    return "\n".join(lines + [f"| `{name}` | {_number(result[name])} |" for name in names])


def _fixed(result: Mapping[str, Any]) -> str:
    """The learned bound beside fixed thresholds and GPTCache, on the near misses."""
    lines = [
        "| served from | guards | semantic hits | of them right | wrong | upper 95 % |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in [result, *result["fixed"], *result.get("gptcache", [])]:
        name = "the learned bound" if row is result else f"a cosine of {row['threshold']:g}"
        name += ", the best under 2 % in hindsight" if row.get("best") else ""
        name = f"GPTCache at {row['threshold']:g}, a cosine of {row['cosine']:g}" if "cosine" in row else name
        shares = f"{row['wrong_hit_rate']:.2%} | {row['wrong_hit_upper95']:.2%}" if row["semantic_hits"] else "- | -"
        guards = "yes" if row.get("guards", row is result) else "no"
        lines.append(f"| {name} | {guards} | {row['semantic_hits']:,} | {row['true_hits']:,} | {shares} |")
    return "\n".join(lines)


def _hijacks(result: Mapping[str, Any]) -> str:
    """Questions that an adversary's records answered."""
    lines = ["| poisoned records | certified | hijacked | undefended |", "|---|---:|---:|---:|"]
    for kind, row in result["hijacks"].items():
        certified = f"{row['certified']} of {row['published']}"
        lines.append(f"| {kind} | {certified} | {row['hijack_rate']:.1%} | {row['hijack_rate_undefended']:.1%} |")
    return "\n".join(lines)


def _load(result: Mapping[str, Any]) -> str:
    columns = {"engine and API": result} | ({"pipeline": result["pipeline"]} if "pipeline" in result else {})
    names = [
        name
        for name, value in result.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    ]
    lines = ["| figure | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| `{name}` | " + " | ".join(_number(column.get(name)) for column in columns.values()) + " |" for name in names
    ]
    return "\n".join(lines)


SIZES = (4, 7, 16)


def _agreement(result: Mapping[str, Any]) -> str:
    names = [
        name.removeprefix("n4.")
        for name, value in result.items()
        if name.startswith("n4.") and not isinstance(value, dict)
    ]
    lines = ["| figure | " + " | ".join(f"n{size}" for size in SIZES) + " |", "|---|" + "---:|" * len(SIZES)]
    lines += [
        f"| `{name}` | " + " | ".join(_number(result.get(f"n{size}.{name}")) for size in SIZES) + " |" for name in names
    ]
    return "\n".join(lines)


CALLS = {
    "ours, exact": "remote_hit",
    "ours, exact, nothing there": "remote_miss",
    "ours, by meaning": "near_hit",
    "ours, by meaning, nothing there": "near_miss",
    "ours, kept by all holders": "put",
    "hivemind, get": "hivemind_get",
    "hivemind, get, nothing there": "hivemind_miss",
    "hivemind, store": "hivemind_put",
    "Kademlia, get": "kad_get",
    "Kademlia, get, nothing there": "kad_miss",
    "Kademlia, put": "kad_put",
}


def _look_ups(result: Mapping[str, Any]) -> str:
    """Calls of each network of processes, by its size."""
    lines = ["| call | peers | p50 ms | p95 ms | CPU ms, all processes |", "|---|---:|---:|---:|---:|"]
    for words, name in CALLS.items():
        for size, prefix in ((4, "n4."), (16, "")):
            values = [result.get(f"{prefix}{name}_{what}") for what in ("p50_ms", "p95_ms", "cpu_ms")]
            if values[0] is not None:
                lines.append(f"| {words} | {size} | " + " | ".join(map(_number, values)) + " |")
    return "\n".join(lines)


def _simulated(rows: Sequence[Mapping[str, float]]) -> str:
    """What a look-up sends, by the number of peers."""
    lines = [
        "| simulated peers | look-up | messages | at first | dials at first | DHT walks at first | ms | at first |"
    ]
    lines += ["|---:|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        for words, name in (("exact", "hit"), ("by meaning", "near_hit"), ("nothing there", "miss")):
            names = [f"{name}_messages", *(f"cold_{name}_{what}" for what in ("messages", "dials", "walks"))]
            numbers = [row[each] for each in (*names, f"{name}_ms", f"cold_{name}_ms")]
            lines.append(f"| {row['peers']} | {words} | " + " | ".join(map(_number, numbers)) + " |")
    return "\n".join(lines)


def _cpu_split(result: Mapping[str, Any]) -> str:
    columns = {
        f"n{size}, {words}": result[f"n{size}.{name}"]
        for size in SIZES
        for name, words in (("cpu_split", "one by one"), ("scores_cpu_split", "many scores"))
        if result.get(f"n{size}.{name}")
    }
    if not columns:
        return ""
    kinds = sorted({kind for split in columns.values() for kind in split})
    lines = ["| CPU time | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for kind in kinds:
        shares = " | ".join(f"{split.get(kind, 0):.0%}" for split in columns.values())
        lines.append(f"| {kind} | {shares} |")
    return "\n".join(lines)


def _rest(result: Mapping[str, Any]) -> str:
    names = [
        name for name, value in result.items() if "." not in name and (value is None or isinstance(value, int | float))
    ]
    lines = ["| figure | measured |", "|---|---:|"]
    return "\n".join([*lines, *(f"| `{name}` | {_number(result[name])} |" for name in names)])


def _memory(rows: Sequence[Mapping[str, float]]) -> str:
    if not rows:
        return ""
    lines = ["| peers in memory | CPU ms a decision, all peers | messages | kB |", "|---:|---:|---:|---:|"]
    for row in rows:
        costs = (row["cpu_ms_per_decision"], row["messages_per_decision"], row["kb_per_decision"])
        lines.append(f"| {row['validators']} | " + " | ".join(_number(cost) for cost in costs) + " |")
    return "\n".join(lines)


def _disk(result: Mapping[str, Any]) -> str:
    largest = list(result["disk_mb_by_table"].items())[:5]
    if not largest:
        return ""
    said = ", ".join(f"`{name}` {size:.1f}" for name, size in largest)
    return f"What a peer's databases grow by in 1,000 answers, in MB, the largest tables: {said}."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
