"""Real answers scored with the real models: a devnet of four peers on one machine.

Public questions come at a steady pace, and each answer's receipt is waited for; then as many callers as it takes keep
the network busy, and certified answers are counted, and the CPU time that the peers and their workers spend on each.
Everything shares the machine's processors: generation by one peer, judging by all four, agreement, anchors.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.devnet import QUESTIONS, ask, reached
from benchmarks.serving import Watch, devnet, quantile

ANSWER_TOKENS: Final = 24
CALLERS: Final = 24
WARMUP: Final = 4


def measured(pace_s: float, paced: int, busy_s: float) -> dict[str, Any]:
    """Certificate times of `paced` answers, one each `pace_s` seconds; then answers certified a second for `busy_s`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        devnet(Path(folder)) as (urls, pid),
        httpx.Client() as http,  # one for all: each loads the machine's certificates, 20 ms
    ):
        questions = _questions()
        with ThreadPoolExecutor(WARMUP) as pool:
            first = [next(questions) for _ in range(WARMUP)]
            list(pool.map(lambda number: _certified(http, urls, number, first[number]), range(WARMUP)))
        certificates_s = _paced(http, urls, questions, pace_s, paced)
        watch = Watch(pid)
        watch.start()
        scored, seconds = _busy(http, urls, questions, busy_s)
        used = watch.stop(max(scored, 1))
    return {
        "real_answers_scored_per_s": scored / seconds,
        "real_worker_cpu_ms": used["cpus_of_workers"] * 1000,
        "real_peer_cpu_ms": used["cpus_of_peers"] * 1000,
        "real_certificate_p50_ms": quantile([took * 1000 for took in certificates_s], 0.5),
        "real_certificate_p99_ms": quantile([took * 1000 for took in certificates_s], 0.99),
        "real_offered_per_s": 1 / pace_s,
        "real_answers": len(certificates_s),
        "real_answer_tokens": ANSWER_TOKENS,
    }


def _paced(http: httpx.Client, urls: Sequence[str], questions: Any, pace_s: float, count: int) -> list[float]:
    began = time.perf_counter()
    with ThreadPoolExecutor(CALLERS * 2) as pool:
        asked = []
        for number in range(count):
            time.sleep(max(0.0, began + number * pace_s - time.perf_counter()))
            asked.append(pool.submit(_certified, http, urls, number, next(questions)))
        return [took for took in (one.result() for one in asked) if took is not None]


def _busy(http: httpx.Client, urls: Sequence[str], questions: Any, seconds: float) -> tuple[int, float]:
    """Certified answers, and the seconds from the start to the last of them."""
    lock, ends = threading.Lock(), []
    began = time.perf_counter()

    def caller(number: int) -> None:
        while time.perf_counter() - began < seconds:
            with lock:
                question = next(questions)
            if _certified(http, urls, number, question) is not None:
                ends.append(time.perf_counter())

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(caller, range(CALLERS)))
    return len(ends), max(seconds, max(ends, default=began) - began)


def _certified(http: httpx.Client, urls: Sequence[str], number: int, question: str) -> float | None:
    """Seconds from an answer's end, when its record is submitted, to its certificate; None if it was not published."""
    url = urls[number % len(urls)]
    about, _, pieces, _, _ = ask(http, url, question, max_tokens=ANSWER_TOKENS, seed=None)
    if about.get("publication") != "pending" or not pieces:
        return None
    return max(0.0, reached(http, url, about["completion_id"], "certified") - pieces[-1])


def _questions() -> Any:
    """Questions without end, no two alike."""
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    number = 0
    while True:
        yield from (line if not number else f"{line} (asked again, {number})" for line in lines)
        number += 1
