"""How long look-ups take: exact and semantic ones in a store on disk, and what a miss adds to the first token.

The store holds real signed and certified records; a semantic look-up is everything up to the choice: index, records
from disk, their verification, guards, bound. Those that count are verified, as in a peer.
"""

from __future__ import annotations

import http.client
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from benchmarks.cache_records import Maker
from benchmarks.cpu_time import busy_cpus, family
from benchmarks.serving import devnet
from nsllm.cache_dht.store import RecordStore
from nsllm.clock import SystemClock
from nsllm.embedding import quantize_embedding
from nsllm.node.peer import calm_collector
from nsllm.offload import ThreadOffload
from nsllm.record import request_key

PROBES: Final = 1000
WARM: Final = 50
"""Look-ups that are not counted: kernels load and pages are read."""
LIMIT_PPM: Final = 20_000
REUSE: Final = ("none", "semantic")
"""What a request asks for: no look-up, or all of them."""
WINDOW_S: Final = 0.2
QUIET_CPUS: Final = 0.4
"""Upkeep of four peers takes less."""
QUIET_S: Final = 5.0
"""Longest wait before a question, on a machine that others use."""
NOISE: Final = 0.01
"""Of each dimension of a record's embedding, so that many records are made of fewer questions."""


def quantile(values: Sequence[float], share: float) -> float:
    """Interpolated."""
    return float(np.quantile(np.array(values), share))


def embeddings(texts: Sequence[str], vectors: np.ndarray, count: int) -> Iterator[tuple[str, bytes]]:
    """As many questions with their embeddings: the texts as they stand, then with a number behind and some noise."""
    rng = np.random.default_rng(1)
    for number in range(count):
        text = texts[number % len(texts)] + (f" part {number}" if number >= len(texts) else "")
        vector = vectors[number % len(texts)] + rng.normal(size=384) * NOISE
        yield text, quantize_embedding((vector / np.linalg.norm(vector)).tolist())


async def look_ups(make: Maker, texts: Sequence[str], vectors: np.ndarray, records: int) -> dict[str, Any]:
    """p50 and p99 of both kinds of look-up at so many records, in wall and in CPU time.

    What is timed is what a peer does between having the question's embedding and having what to serve: the store on
    disk, index, choice, and the check of everything that it would serve.

    Args:
        make: of records.
        texts: questions; more records than these are made with a number behind.
        vectors: their embeddings.
        records: how many.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore.open(Path(folder) / "records.sqlite", SystemClock(), ThreadOffload())
        store._connection.execute("PRAGMA synchronous=OFF")  # noqa: SLF001 - filling is not measured
        asked: list[tuple[str, bytes]] = []
        for certified in make.records(embeddings(texts, vectors, records)):
            record = certified.signed.record
            await store.put(certified, certified.leaf.request_key, 900_000)
            asked.append((record.request.question(), record.embedding))
        store.close()
        opened = time.perf_counter()
        store = RecordStore.open(Path(folder) / "records.sqlite", SystemClock(), ThreadOffload())
        figures: dict[str, Any] = {"records": records, "open_s": time.perf_counter() - opened}
        cache, near = make.cache(store), make.near()
        calm_collector()  # as a peer when it has started
        order = random.Random(2).sample(range(records), min(PROBES + WARM, records))
        warm = min(WARM, records // 2)
        exact, semantic = [], []
        for number in order:
            request = make.request(asked[number][0])
            with timed(exact):
                found = await cache.local(request_key(make.context.network_id, request))
            assert found is not None
        for number in order:
            text, embedding = texts[number % len(texts)], asked[number][1]
            request, vector = make.request(text), (np.frombuffer(embedding, np.int8) / 127).tolist()
            with timed(semantic):
                await near.here(cache, request, vector, LIMIT_PPM)
        store.close()
    for name, took in (("exact", exact[warm:]), ("semantic", semantic[warm:])):
        figures[f"{name}_p50_ms"] = quantile([wall for wall, _ in took], 0.5)
        figures[f"{name}_p99_ms"] = quantile([wall for wall, _ in took], 0.99)
        figures[f"{name}_cpu_ms"] = sum(cpu for _, cpu in took) / len(took)
    return figures


@contextmanager
def timed(into: list[tuple[float, float]]) -> Iterator[None]:
    """Milliseconds that a block took: by the clock, and of this process's threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into.append(((time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000))


def miss_added(questions: Sequence[str]) -> dict[str, Any]:
    """Time to the first token of public questions that nobody has answered, with look-ups and without.

    Each peer is asked twice in a row; which of the two looks up first alternates, and each question waits until all
    peers are quiet: the scoring of the one before is not part of it.
    """
    taken: dict[str, list[float]] = {reuse: [] for reuse in REUSE}
    with tempfile.TemporaryDirectory() as folder, devnet(Path(folder)) as (urls, pid):
        peers = family(pid)
        for number, question in enumerate(questions):
            pair, second = divmod(number, 2)
            lap, peer = divmod(pair, len(urls))
            reuse = REUSE[(second + lap) % 2]
            _wait_for_quiet(peers)
            took = _first_token_s(urls[peer], question, reuse)
            if lap:  # connections and kernels are warm
                taken[reuse].append(took * 1000)
    p95 = {reuse: quantile(values, 0.95) for reuse, values in taken.items()}
    p50 = {reuse: quantile(values, 0.5) for reuse, values in taken.items()}
    return {
        "ttft_none_p50_ms": p50["none"],
        "ttft_none_p95_ms": p95["none"],
        "ttft_miss_p50_ms": p50["semantic"],
        "ttft_miss_p95_ms": p95["semantic"],
        "miss_added_ttft_p50_ms": p50["semantic"] - p50["none"],
        "miss_added_ttft_p95_ms": p95["semantic"] - p95["none"],
        "ttft_questions": sum(map(len, taken.values())),
    }


def _wait_for_quiet(pids: Sequence[int]) -> None:
    """Return once the processes have nothing to do, or after `QUIET_S`."""
    deadline = time.perf_counter() + QUIET_S
    while sum(busy_cpus([pids], WINDOW_S)) > QUIET_CPUS and time.perf_counter() < deadline:
        pass


def _first_token_s(url: str, question: str, reuse: str) -> float:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 2,
        "stream": True,
        "visibility": "public",
        "reuse": reuse,
    }
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {answer.read(500)!r}")
        while line := answer.readline():
            if b'"content":"' in line and b'"content":""' not in line:
                took = time.perf_counter() - began
                answer.read()
                return took
    finally:
        connection.close()
    raise SystemExit("an answer without text")
