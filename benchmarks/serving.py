"""What a peer serves over HTTP: an open-loop Poisson load of streamed answers against a real peer on this machine.

Starts `nsllm up` in a temporary folder (a network of one) and lets a load generator in a process of its own ask private
questions: distinct prompts of 48 tokens, answers of exactly 48. A request fails if it is refused (429), breaks off,
ends short or late. With `--pipeline`, the same load then goes as public requests over a devnet of four peers on the
same machine, through validation, look-ups, scoring, consensus and records, and stands beside it.

    python -m benchmarks.serving --quick --json
    python -m benchmarks.serving --rps 30 --set engine.threads=2 --pipeline
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import goals, limit, material
from benchmarks.contestants.process import ROOT
from benchmarks.report import at_end, facts, machine, table
from nsllm.node.engine.fast.chat import ChatText
from nsllm.node.engine.models import default_home, ensure_default_models
from nsllm.node.tcp_ports import any_free

PROMPT_TOKENS: Final = 48
ANSWER_TOKENS: Final = 48
ENGINE_ALONE: Final = 'judge_private = "wording"\n'
WARMUP: Final = 32
LIMIT_S: Final = 60
"""For the last answer, after the last request."""
PEERS: Final = 4
HOST: Final = "127.0.0.1"
LOOK_S: Final = 0.5
"""Between looks at the worker's memory."""
STOP_S: Final = 30


def plan(urls: Sequence[str], prompts: Sequence[str], visibility: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the load generator is to do."""
    chat = options.endpoint == "chat"
    bodies = [
        {
            "model": "default",
            **({"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}),
            "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "visibility": visibility,
        }
        for prompt in prompts
    ]
    return {
        "urls": list(urls),
        "path": "/v1/chat/completions" if chat else "/v1/completions",
        "bodies": bodies,
        "rps": options.rps,
        "duration_s": options.duration,
        "warmup": WARMUP,
        "limit_s": LIMIT_S,
        "seed": options.seed,
    }


def summary(rows: Sequence[Mapping[str, Any]], duration_s: float, answer_tokens: int = ANSWER_TOKENS) -> dict[str, Any]:
    """Figures of a run's rows."""
    faults = Counter(_fault(row, answer_tokens) for row in rows)
    good = [row for row in rows if not _fault(row, answer_tokens)]
    ends = sorted(row["due_s"] + row["ended_s"] for row in good)
    firsts = [row["texts_s"][0] * 1000 for row in good]
    pauses = [
        (later - sooner) * 1000
        for row in good
        for sooner, later in zip(row["texts_s"], row["texts_s"][1:], strict=False)
    ]
    # From the first completion to the last: longer than the load lasted if the server fell behind.
    spread_s = max(duration_s, ends[-1] - ends[0]) if ends else duration_s
    return {
        "offered_rps": len(rows) / duration_s,
        "completed_rps": len(ends) / spread_s,
        "duration_s": duration_s,
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": answer_tokens,
        "sent": len(rows),
        "completed": len(good),
        "failed": len(rows) - len(good),
        "failures": {fault: count for fault, count in sorted(faults.items()) if fault},
        "itl_p50_ms": quantile(pauses, 0.5),
        "itl_p95_ms": quantile(pauses, 0.95),
        "itl_p99_ms": quantile(pauses, 0.99),
        "ttft_p50_ms": quantile(firsts, 0.5),
        "ttft_p95_ms": quantile(firsts, 0.95),
        "ttft_p99_ms": quantile(firsts, 0.99),
        "answer_p95_ms": quantile([row["ended_s"] * 1000 for row in good], 0.95),
        "tokens_per_s": sum(row["completion_tokens"] for row in good) / spread_s,
        "events_per_answer": sum(len(row["texts_s"]) for row in good) / len(good) if good else None,
        "prompt_tokens_with_template": quantile([row["prompt_tokens"] for row in good], 0.5),
        "from_cache": sum(row["source"] == "cache" for row in good),
    }


def carried(rps: float, work: limit.Work, most: limit.Limit) -> dict[str, float]:
    """What the load needs of this machine at least: linear layers only, no attention, nothing around the model."""
    request = work.prefill(PROMPT_TOKENS) + work.decode(ANSWER_TOKENS)
    return {
        "machine_int8_gops": most.int8_gops,
        "needed_int8_gops": rps * request,
        "rps_at_int8_limit": most.int8_gops / request,
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """The nearest rank; None of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else None


def _fault(row: Mapping[str, Any], answer_tokens: int) -> str:
    """Why a request failed; empty if it did not."""
    if row["fault"]:
        return str(row["fault"])
    if row["completion_tokens"] != answer_tokens:
        return f"{row['completion_tokens']} tokens"
    return "" if row["texts_s"] else "no text"


@contextmanager
def solo(folder: Path, settings: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """(URLs, process) of a network of one: engine and API alone, so questions and answers are not embedded."""
    (folder / "config.toml").write_text(ENGINE_ALONE + toml(settings), encoding="utf-8")
    command = ["up", "--data-dir", str(folder), "--port", str(any_free(HOST)), "--log-level", "warning"]
    with _running(command, folder) as (process, said):
        yield [said["url"]], process.pid


@contextmanager
def devnet(folder: Path) -> Iterator[tuple[list[str], int]]:
    """(URLs, process) of four peers."""
    command = ["devnet", "--peers", str(PEERS), "--data-dir", str(folder / "net"), "--base-port", "8900"]
    with _running(command, folder) as (process, said):
        yield [peer["url"] for peer in said["peers"]], process.pid


@contextmanager
def _running(command: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    log = folder / "benchmark.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "nsllm", *command, "--json"], stdout=subprocess.PIPE, stderr=errors
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"it did not start: {log.read_text('utf-8', 'replace')[-2000:]}")
        yield process, json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()


class Watch(threading.Thread):
    """Memory and CPU time of a process and those below it, from the first request on."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._before = self._cpu()
        self.worker_bytes = 0

    def run(self) -> None:
        """Look again and again."""
        while not self._done.wait(LOOK_S):
            with suppress(psutil.NoSuchProcess):
                workers = [one.memory_info().rss for one in self._all() if _is_worker(one)]
                self.worker_bytes = max(self.worker_bytes, *workers, 0)

    def stop(self, elapsed_s: float) -> dict[str, Any]:
        """Figures: the largest worker, and processors that were busy (CPU seconds each, of a count for seconds)."""
        self._done.set()
        self.join()
        after = self._cpu()
        used = {kind: (after[kind] - self._before[kind]) / elapsed_s for kind in after}
        return {
            "worker_rss_mb": self.worker_bytes / 2**20,
            "cpus_of_peers": used["peer"],
            "cpus_of_workers": used["worker"],
        }

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu(self) -> dict[str, float]:
        seconds = {"peer": 0.0, "worker": 0.0}
        for one in self._all():
            seconds["worker" if _is_worker(one) else "peer"] += sum(one.cpu_times()[:2])
        return seconds


def _is_worker(process: psutil.Process) -> bool:
    return "nsllm.node.engine.worker" in process.cmdline()


def measure(
    urls: Sequence[str], pid: int, visibility: str, prompts: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Send the load, and say what came of it."""
    generator = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert generator.stdin is not None
        assert generator.stderr is not None
        generator.stdin.write(json.dumps(plan(urls, prompts, visibility, options)))
        generator.stdin.close()
        generator.stdin = None
        if generator.stderr.readline() != "go\n":
            raise SystemExit(f"the load generator failed: {generator.stderr.read()[-2000:]}")
        watch = Watch(pid)
        watch.start()
        output, _ = generator.communicate()
        found = json.loads(output)
    finally:
        generator.kill()
    figures = summary(found["rows"], options.duration)
    whole_s = max((row["due_s"] + (row["ended_s"] or LIMIT_S) for row in found["rows"]), default=0.0)
    elapsed_s = whole_s - min(row["due_s"] for row in found["rows"])
    return figures | {"generator_cpu_share": found["generator_cpu_share"]} | watch.stop(elapsed_s)


def toml(settings: Sequence[str]) -> str:
    """`section.name=value` as a settings file."""
    sections: dict[str, list[str]] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append(f"{key} = {value}")
    return "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


def markdown(result: Mapping[str, Any]) -> str:
    """The figures, the pipeline's beside them."""
    figures = {name: value for name, value in result.items() if name not in {"goals", "machine", "pipeline"}}
    parts = [table(result["goals"]), facts(figures)]
    if "pipeline" in result:
        parts += [f"Through the whole pipeline, {PEERS} peers:", facts(result["pipeline"])]
    return "\n\n".join([*parts, facts(result["machine"])])


def main() -> int:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of Markdown")
    parser.add_argument("--quick", action="store_true", help="30 seconds")
    parser.add_argument("--rps", type=float, default=20.0, help="requests a second on average (default: 20)")
    parser.add_argument("--duration", type=float, help="seconds (default: 300)")
    parser.add_argument(
        "--endpoint",
        choices=("chat", "completions"),
        default="chat",
        help="chat completions, whose template adds tokens (default), or completions",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    parser.add_argument("--pipeline", action="store_true", help="then the same through a devnet of four peers")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="a setting of the peer, as in config.toml",
    )
    options = parser.parse_args()
    options.duration = options.duration or (30.0 if options.quick else 300.0)
    about = machine()
    models = ensure_default_models(default_home(os.environ), lambda _progress: None)
    chat = ChatText(models.text)
    prompts = list(material.prompts(chat.tokens, chat.text, PROMPT_TOKENS))[
        : WARMUP + round(options.rps * options.duration)
    ]
    with tempfile.TemporaryDirectory() as folder, solo(Path(folder), options.set) as (urls, pid):
        result = measure(urls, pid, "private", prompts, options)
    result |= carried(options.rps, limit.Work.of_folder(models.text), limit.measure(os.cpu_count() or 1))
    result |= {
        "endpoint": options.endpoint,
        "settings": [ENGINE_ALONE.strip(), *options.set],
        "goals": goals.judged(goals.SERVING, result),
    }
    if options.pipeline:
        with tempfile.TemporaryDirectory() as folder, devnet(Path(folder)) as (urls, pid):
            result["pipeline"] = measure(urls, pid, "public", prompts, options)
    result["machine"] = about | at_end()
    print(json.dumps(result, indent=1) if options.json else markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
