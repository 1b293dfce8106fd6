"""How many exact hits a second one peer serves over HTTP: a network of one, whose answers are asked for again.

python -m benchmarks.cache_hits --json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.contestants.process import ROOT
from benchmarks.cpu_time import cpu_s, family
from benchmarks.report import facts
from benchmarks.serving import solo

QUESTIONS: Final = 8
"""That are asked for again, in turns."""
CONNECTIONS: Final = 16
ANSWER_TOKENS: Final = 48
CERTIFIED_S: Final = 60
WARM_S: Final = 2.0


def exact_hits(duration_s: float) -> dict[str, Any]:
    """Hits a second, by wall and by CPU time of the peer and its workers."""
    with tempfile.TemporaryDirectory() as folder, solo(Path(folder), []) as ([url], pid):
        bodies = [_body(f"What should I know about subject number {number}?") for number in range(QUESTIONS)]
        with httpx.Client(base_url=url, timeout=300) as http:
            for body in bodies:
                about = http.post("/v1/chat/completions", json=body).raise_for_status().json()["nsllm"]
                wait = {"wait": "certified", "timeout_s": CERTIFIED_S}
                http.get(about["receipt"], params=wait, timeout=2 * CERTIFIED_S).raise_for_status()
        plan = {"url": url, "bodies": bodies, "connections": CONNECTIONS}
        _load(plan | {"duration_s": WARM_S})
        peer = family(pid)
        before = cpu_s(peer)
        seen = _load(plan | {"duration_s": duration_s})
        took_s = cpu_s(peer) - before
    hits = seen["kinds"].pop("200 cache exact", 0)
    if seen["kinds"]:
        raise SystemExit(f"not all answers were exact hits: {seen['kinds']} and {hits} hits")
    return {
        "exact_hits_per_s": hits / seen["elapsed_s"],
        "exact_hits_per_cpu_s": hits / took_s,
        "exact_hit_p50_ms": seen["p50_ms"],
        "exact_hit_p99_ms": seen["p99_ms"],
        "exact_hit_connections": CONNECTIONS,
        "exact_hit_generator_cpu_share": seen["generator_cpu_share"],
    }


def _body(question: str) -> dict[str, Any]:
    return {
        "model": "default",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": ANSWER_TOKENS,
        "visibility": "public",
    }


def _load(plan: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.hits_load"]
    done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"the load generator failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of load (default: 10)")
    options = parser.parse_args()
    result = exact_hits(options.duration)
    print(json.dumps(result, indent=1) if options.json else facts(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
