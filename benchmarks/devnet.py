"""How fast the whole road is on a devnet of four real peers: tokens, certificates, anchors, cache hits.

Starts `nsllm devnet --peers 4` with the default models on this machine, streams benign questions over all peers, and
takes the time from an answer's last token to its certificate and to its certified anchor, as a client sees it.
Then every published answer is asked for again on another peer.

    python benchmarks/devnet.py --quick --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

QUESTIONS = Path(__file__).with_name("benign_questions.txt")
PEERS = 4
WAIT_S = 120.0
POLL_S = 0.1


@dataclass(frozen=True)
class Row:
    """One published answer; times in seconds."""

    peer: int
    question: str
    first_token_s: float
    tokens: int
    generation_s: float
    """From the first token to the last."""
    certificate_s: float
    """From the last token."""
    anchor_s: float
    """From the last token."""


@contextmanager
def devnet(folder: Path, base_port: int) -> Iterator[tuple[list[str], float]]:
    """(URLs, seconds until all were ready) of a devnet; stopped at the end."""
    command = [sys.executable, "-m", "nsllm", "devnet", "--peers", str(PEERS), "--json"]
    command += ["--base-port", str(base_port), "--data-dir", str(folder)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the devnet did not start")
        yield [peer["url"] for peer in json.loads(line)["peers"]], time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ask(
    http: httpx.Client, url: str, question: str, *, max_tokens: int, seed: int | None
) -> tuple[dict, str, list[float], int, float]:
    """(the reply's `nsllm` object, source, times of the pieces, tokens, time of asking) of a streamed answer."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "visibility": "public",
    } | ({} if seed is None else {"seed": seed})
    began = time.perf_counter()
    about: dict = {}
    pieces: list[float] = []
    tokens = 0
    with http.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            about.update(chunk.get("nsllm") or {})
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                pieces.append(time.perf_counter())
        return about, response.headers["x-nsllm-source"], pieces, tokens, began


def reached(http: httpx.Client, url: str, completion: str, level: str) -> float:
    """When the receipt has reached `level`."""
    while True:
        params = {"wait": level, "timeout_s": "30"}
        answer = http.get(f"{url}/v1/receipts/{completion}", params=params, timeout=60)
        state = answer.headers.get("x-nsllm-receipt")
        levels = ("pending", "certified", "logged", "anchored")
        if state in levels and levels.index(state) >= levels.index(level):
            return time.perf_counter()
        if state not in levels:
            raise SystemExit(f"no receipt of {completion}: {answer.text}")


def spread(url: str, count: int) -> None:
    """Wait until that many of the peer's records have reached their holders, as its metrics say."""
    deadline = time.perf_counter() + WAIT_S
    wanted = 'nsllm_events_total{kind="record_spread"} '
    while True:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        if sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)) >= count:
            return
        if time.perf_counter() > deadline:
            raise SystemExit(f"not all of the {count} records of {url} reached their holders within {WAIT_S} s")
        time.sleep(POLL_S)


def measure(http: httpx.Client, url: str, peer: int, question: str, *, max_tokens: int, seed: int | None) -> Row | None:
    """One question's road; None if the answer was not published."""
    about, _, pieces, tokens, began = ask(http, url, question, max_tokens=max_tokens, seed=seed)
    if about["publication"] != "pending" or not pieces:
        return None
    certified = reached(http, url, about["completion_id"], "certified")
    anchored = reached(http, url, about["completion_id"], "anchored")
    return Row(
        peer=peer,
        question=question,
        first_token_s=pieces[0] - began,
        tokens=tokens,
        generation_s=pieces[-1] - pieces[0],
        certificate_s=certified - pieces[-1],
        anchor_s=anchored - pieces[-1],
    )


def quantiles(values: Sequence[float]) -> dict[str, float | int | None]:
    """p50, p95 (nearest rank) and count."""
    ranked = sorted(values)
    if not ranked:
        return {"p50": None, "p95": None, "n": 0}
    p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
    return {"p50": round(statistics.median(ranked), 3), "p95": round(p95, 3), "n": len(ranked)}


def run(
    http: httpx.Client, urls: list[str], questions: list[str], *, streams: int, max_tokens: int, seed: int | None
) -> dict:
    """All figures."""
    turn = threading.Semaphore(streams)

    def one(number: int) -> Row | None:
        peer = number % len(urls)
        with turn:
            return measure(http, urls[peer], peer, questions[number], max_tokens=max_tokens, seed=seed)

    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        rows = [row for row in pool.map(one, range(len(questions))) if row is not None]
    whole_s = time.perf_counter() - began
    for peer, url in enumerate(urls):
        spread(url, sum(row.peer == peer for row in rows))
    hits: list[float] = []
    misses = 0
    for row in rows:
        elsewhere = urls[(row.peer + 1) % len(urls)]
        _, source, pieces, _, asked = ask(http, elsewhere, row.question, max_tokens=max_tokens, seed=seed)
        if source == "cache":
            hits.append(pieces[-1] - asked)
        else:
            misses += 1
    return {
        "questions": len(questions),
        "published": len(rows),
        "streams": streams,
        "seconds": round(whole_s, 1),
        "first_token_s": quantiles([row.first_token_s for row in rows]),
        "tokens_per_second_a_stream": quantiles(
            [(row.tokens - 1) / row.generation_s for row in rows if row.generation_s > 0 and row.tokens > 1]
        ),
        "last_token_to_certificate_s": quantiles([row.certificate_s for row in rows]),
        "last_token_to_anchor_s": quantiles([row.anchor_s for row in rows]),
        "cache_hit_elsewhere_s": quantiles(hits),
        "cache_misses_elsewhere": misses,
    }


def main() -> None:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 questions instead of 20")
    parser.add_argument("--json", action="store_true", help="one line, one object")
    parser.add_argument("--streams", type=int, default=4, help="questions under way at the same time")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, help="of every answer; none: as callers usually ask")
    parser.add_argument("--base-port", type=int, default=8860)
    arguments = parser.parse_args()
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    questions = lines[:: len(lines) // 8][:8] if arguments.quick else lines[::7][:20]
    with tempfile.TemporaryDirectory() as folder, devnet(Path(folder) / "net", arguments.base_port) as (urls, ready_s):
        load = os.getloadavg()[0]
        with httpx.Client() as http:
            found = run(
                http, urls, questions, streams=arguments.streams, max_tokens=arguments.max_tokens, seed=arguments.seed
            )
    about = {"peers": PEERS, "cores": os.cpu_count(), "machine": platform.machine(), "load_at_start": round(load, 1)}
    found = about | {"ready_s": round(ready_s, 1)} | found
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<30} {json.dumps(value)}")


if __name__ == "__main__":
    main()
