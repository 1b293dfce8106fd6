"""How fast the engine's fast path is, and how good, beside transformers on the same machine in the same run.

Both run in this process on the same threads, in alternating order after a warm-up, and medians count: milliseconds a
step and tokens a second at several numbers of streams, tokens a second of reading a prompt, CPU seconds beside wall
seconds (another program on the machine changes wall times, and less so CPU times). Perplexity is taken on English text
that every Python installation has. Then one real worker writes 32 answers at once, sampling and messages included.

    python -m benchmarks.engine --quick --json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

CONTEXT_TOKENS = 64
"""Tokens that each stream has before decoding is timed."""
STREAMS = (1, 8, 32, 64)
PREFILL_TOKENS = 512
WINDOW_TOKENS = 512
"""Of the text that perplexity is taken on."""
SYSTEM_CHARS = 2400
"""Of a shared system prompt: about 500 tokens."""
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Timing:
    """One contestant at one task; medians over the rounds."""

    task: str
    who: str
    wall_ms: float
    cpu_ms: float
    tokens_per_s: float
    """By wall time."""
    tokens_per_cpu_s: float


def measure(task: str, tokens: int, runs: dict[str, Callable[[], object]], rounds: int) -> list[Timing]:
    """Median wall and CPU time of each run, taken in turns; `tokens` that one run reads or writes."""
    for run in runs.values():
        run()  # warm-up
    seen: dict[str, list[tuple[float, float]]] = {who: [] for who in runs}
    for number in range(rounds):
        order = list(runs.items())
        for who, run in order if number % 2 else order[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seen[who].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows = []
    for who, pairs in seen.items():
        wall, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        rows.append(Timing(task, who, wall * 1000, cpu * 1000, tokens / wall, tokens / cpu))
    return rows


class Fast:
    """The fast path, step by step."""

    def __init__(self, text: Path, encoder: Path, threads: int) -> None:
        from nsllm.node.engine.choice import choose
        from nsllm.node.engine.fast.backend import FastBackend

        choice = choose(text, "fast")
        assert choice.library is not None
        assert choice.dtype in {"int8", "float32"}
        numerics: Any = choice.dtype
        self.backend = FastBackend(text, encoder, choice.library, numerics, threads=threads, cache_mb=512)

    def decode(self, streams: int, tokens: list[int]) -> Callable[[], object]:
        """A function that writes one token in each of `streams`."""
        from nsllm.node.engine.backend import Read

        caches = [self._opened([i, *tokens[1:CONTEXT_TOKENS]], 200) for i in range(streams)]
        return lambda: self.backend.forward([Read(cache, [tokens[5]], 1) for cache in caches])

    def prefill(self, tokens: list[int]) -> Callable[[], object]:
        """A function that reads a prompt that nobody has read before."""
        count = iter(range(100, 1_000_000))
        return lambda: self.backend.close(self._opened([next(count) % 40_000, *tokens[1:]], len(tokens)))

    def losses(self, tokens: list[int]) -> list[float]:
        """Negative log-probabilities of all tokens but the first."""
        from nsllm.node.engine.backend import Read

        cache = self.backend.open(tokens[:1], len(tokens), side=True)  # nothing is known of one token: all is read
        assert cache is not None
        (logits,) = self.backend.forward([Read(cache, tokens[:-1], len(tokens) - 1)])
        losses = [-value for value in self.backend.log_probabilities(logits, tokens[1:])]
        self.backend.close(cache)
        return losses

    def _opened(self, tokens: list[int], most: int) -> Any:
        from nsllm.node.engine.backend import Read

        cache = self.backend.open(tokens, most, side=True)
        assert cache is not None
        for start in range(cache.read, len(tokens), 64):
            self.backend.forward([Read(cache, tokens[start : start + 64], 1)])
        return cache


class Eager:
    """transformers, eager, batched: what `AutoModelForCausalLM` does when it is asked well."""

    def __init__(self, text: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(text, dtype="auto", local_files_only=True).eval()

    def decode(self, streams: int, tokens: list[int]) -> Callable[[], object]:
        """A function that writes one token in each of `streams`."""
        torch = self._torch
        rows = torch.tensor([[i, *tokens[1:CONTEXT_TOKENS]] for i in range(streams)])
        with torch.inference_mode():
            cache = self.model(input_ids=rows, use_cache=True, logits_to_keep=1).past_key_values
        last = torch.full((streams, 1), tokens[5])

        def step() -> object:
            with torch.inference_mode():
                return self.model(input_ids=last, past_key_values=cache, use_cache=True).logits

        return step

    def prefill(self, tokens: list[int]) -> Callable[[], object]:
        """A function that reads a prompt."""
        rows = self._torch.tensor([tokens])

        def read() -> object:
            with self._torch.inference_mode():
                return self.model(input_ids=rows, use_cache=True, logits_to_keep=1).logits

        return read

    def losses(self, tokens: list[int]) -> list[float]:
        """Negative log-probabilities of all tokens but the first."""
        torch = self._torch
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([tokens])).logits[0, :-1].float()
            following = torch.tensor(tokens[1:])
            values: list[float] = torch.nn.functional.cross_entropy(logits, following, reduction="none").tolist()
            return values


def prefix_speedup(fast: Fast, rounds: int) -> tuple[float, float]:
    """Milliseconds to the first token after a system prompt of about 500 tokens: read anew, and found again."""
    from nsllm.node.engine.backend import Read
    from nsllm.record import Message

    backend = fast.backend
    text = "\n".join(sorted(topics.values()))
    times: dict[str, list[float]] = {"anew": [], "again": []}
    for number in range(rounds):
        system = Message(role="system", content=f"{number} " + text[number * 5000 : number * 5000 + SYSTEM_CHARS])
        for kind, seen in times.items():
            tokens = backend.chat_tokens((system, Message(role="user", content=f"And {kind}?")))
            began = time.perf_counter()
            cache = backend.open(tokens, len(tokens) + 1, side=True)
            assert cache is not None
            while cache.read < len(tokens):
                backend.forward([Read(cache, tokens[cache.read : cache.read + 64], 1)])
            seen.append((time.perf_counter() - began) * 1000)
            backend.close(cache)
    return statistics.median(times["anew"]), statistics.median(times["again"])


def worker(text: Path, encoder: Path, threads: int) -> dict[str, float]:
    """A real worker that writes 32 answers at once."""
    import psutil
    import trio

    from nsllm.node.engine.port import Piece
    from nsllm.node.engine.supervisor import WorkerEngine
    from nsllm.record import Message, Sampling

    engine = WorkerEngine(
        text=text, encoder=encoder, threads=threads, max_queue=64, max_active=32, rng=random.Random(1)
    )
    counted = 0

    async def ask(number: int) -> None:
        nonlocal counted
        question = (Message(role="user", content=f"Tell me a story about {number} ships."),)
        async with engine.generate(question, Sampling(seed=number, max_tokens=ANSWER_TOKENS)) as stream:
            async for event in stream:
                counted += len(event.token_ids) if isinstance(event, Piece) else 0

    async def main() -> dict[str, float]:
        began = time.perf_counter()
        async with engine.running():
            await engine.wait_ready()
            ready_s = time.perf_counter() - began
            process = psutil.Process(engine.worker_pid)
            began, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
            async with trio.open_nursery() as nursery:
                for number in range(32):
                    nursery.start_soon(ask, number)
            wall_s, cpu_s = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu
            return {
                "worker_start_s": ready_s,
                "worker_rss_mb": process.memory_info().rss / 2**20,
                "worker_streams32_tokens_per_s": counted / wall_s,
                "worker_streams32_tokens_per_cpu_s": counted / cpu_s,
            }

    return trio.run(main)


def perplexities(fast: Fast, eager: Eager, windows: int) -> tuple[float, float, int]:
    """Of the fast path and of transformers, and over how many tokens."""
    tokens = fast.backend.tokens("\n".join(sorted(topics.values())))
    ours: list[float] = []
    theirs: list[float] = []
    for start in range(0, windows * WINDOW_TOKENS, WINDOW_TOKENS):
        window = tokens[start : start + WINDOW_TOKENS]
        ours += fast.losses(window)
        theirs += eager.losses(window)
    return math.exp(statistics.fmean(ours)), math.exp(statistics.fmean(theirs)), len(ours)


def run(*, quick: bool, threads: int) -> dict[str, Any]:
    """All measurements."""
    import torch

    from nsllm.node.engine.models import default_home, ensure_default_models

    torch.set_num_threads(threads)
    paths = ensure_default_models(default_home(os.environ), lambda _progress: None)
    fast, eager = Fast(paths.text, paths.encoder, threads), Eager(paths.text)
    tokens = fast.backend.tokens("\n".join(sorted(topics.values())))[: PREFILL_TOKENS * 40]
    rounds = 5 if quick else 15
    rows: list[Timing] = []
    for streams in STREAMS:
        runs = {"fast": fast.decode(streams, tokens), "transformers": eager.decode(streams, tokens)}
        rows += measure(f"decode, {streams} streams", streams, runs, rounds)
    prompt = tokens[:PREFILL_TOKENS]
    runs = {"fast": fast.prefill(prompt), "transformers": eager.prefill(prompt)}
    rows += measure(f"read {PREFILL_TOKENS} tokens", PREFILL_TOKENS, runs, 3 if quick else 7)
    ours, theirs, counted = perplexities(fast, eager, 4 if quick else 40)
    anew_ms, again_ms = prefix_speedup(fast, 3 if quick else 7)
    del eager

    def ratio(task: int, field: str) -> float:
        first, second = (getattr(rows[2 * task + i], field) for i in (0, 1))
        return float(second / first)

    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        },
        "threads": threads,
        "quick": quick,
        "single_stream_ms": rows[0].wall_ms,
        "single_stream_cpu_ms": rows[0].cpu_ms,
        **{f"streams{n}_vs_transformers": ratio(i, "wall_ms") for i, n in enumerate(STREAMS)},
        **{f"streams{n}_vs_transformers_cpu": ratio(i, "cpu_ms") for i, n in enumerate(STREAMS)},
        "prefill_vs_transformers": ratio(len(STREAMS), "wall_ms"),
        "prefill_vs_transformers_cpu": ratio(len(STREAMS), "cpu_ms"),
        "perplexity_fast": ours,
        "perplexity_transformers": theirs,
        "perplexity_int8_over_bf16": ours / theirs,
        "perplexity_tokens": counted,
        "prefix_anew_ms": anew_ms,
        "prefix_again_ms": again_ms,
        "prefix_cache_ttft_speedup": anew_ms / again_ms,
        **worker(paths.text, paths.encoder, threads),
        "timings": [asdict(row) for row in rows],
    }


def table(result: dict[str, Any]) -> str:
    """The timings as a Markdown table, then the rest."""
    lines = ["| task | who | ms | CPU ms | tokens/s | tokens/CPU s |", "|---|---|---|---|---|---|"]
    for row in result["timings"]:
        numbers = " | ".join(f"{row[name]:.1f}" for name in ("wall_ms", "cpu_ms"))
        rates = " | ".join(f"{row[name]:.0f}" for name in ("tokens_per_s", "tokens_per_cpu_s"))
        lines.append(f"| {row['task']} | {row['who']} | {numbers} | {rates} |")
    rest = {name: value for name, value in result.items() if name != "timings"}
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in rest.items())])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    result = run(quick=options.quick, threads=options.threads)
    sys.stdout.write((json.dumps(result, indent=1) if options.json else table(result)) + "\n")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main())
