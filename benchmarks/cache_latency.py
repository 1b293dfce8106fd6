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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import numpy as np
import trio

from benchmarks.serving import devnet
from nsllm.cache_dht.calibration import shipped
from nsllm.cache_dht.guards import same_but_question
from nsllm.cache_dht.judge import compatible
from nsllm.cache_dht.observations import Tally
from nsllm.cache_dht.reuse import LEAST_COSINE, NEIGHBOURS, Candidate, SemanticReuse
from nsllm.cache_dht.store import RecordStore
from nsllm.clock import SystemClock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.crypto import MemberKey
from nsllm.ids import Address, Digest
from nsllm.offload import ThreadOffload
from nsllm.record import Message, Request, quantize_embedding, request_key, sign_record
from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.questions import anchored, ask, until
from nsllm.simulations.virtual import run_virtual


class Maker:
    """Records by the thousand: one is certified by a simulated network of four, the others are its likes.

    Their certificates are the first one's: they are as large, and take as long to read; what is verified is the first.
    """

    def __init__(self) -> None:
        made: list[tuple[CertifiedRecord, Callable[[], None]]] = []

        async def main() -> None:
            with tempfile.TemporaryDirectory() as folder:
                network = SimulatedNetwork(4, 1, Path(folder))
                async with trio.open_nursery() as nursery:
                    for number in range(4):
                        await network.start(nursery, number)
                    first = network.running()[0]
                    await until(lambda: first.readiness().ready, "the network connected")
                    given = await ask(0, first, "What should I know about tides?")
                    await anchored(first, given.completion_id)
                    for peer in network.running():
                        for digest in await peer.stores.records.digests():
                            found, context = await peer.stores.records.by_digest(digest), peer.parts.context
                            assert found is not None
                            check = partial(found.check, context.network_id, context.validators)
                            made.append((found, check))
                    nursery.cancel_scope.cancel()

        with quiet():
            run_virtual(1, main)
        self._first, self.check = made[0]
        self._key = MemberKey(bytes([1]) * 32)

    def request(self, text: str) -> Request:
        """Of a question that is asked of the first record's model."""
        return msgspec.structs.replace(
            self._first.signed.record.request, messages=(Message(role="user", content=text),)
        )

    def genuine(self, _candidate: Candidate) -> bool:
        """Takes as long as to verify a record."""
        self.check()
        return True

    def record(self, text: str, embedding: bytes) -> tuple[CertifiedRecord, Digest]:
        """A record of a question, and its request key."""
        replace, first = msgspec.structs.replace, self._first
        made = replace(
            first.signed.record, request=self.request(text), embedding=embedding, generator=self._key.address
        )
        key = request_key(made.network, made.request)
        leaf = replace(first.leaf, record=made.digest(), request_key=key, generator=made.generator)
        return replace(first, signed=sign_record(self._key, made), leaf=leaf), key


PROBES: Final = 1000
NOISE: Final = 0.01
"""Of each dimension of a record's embedding, so that many records are made of fewer questions."""


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(values), share))


async def look_ups(make: Maker, texts: Sequence[str], vectors: np.ndarray, records: int) -> dict[str, Any]:
    """p50 and p99 of both kinds of look-up at so many records.

    Args:
        make: of records.
        texts: questions; more records than these are made with a number behind.
        vectors: their embeddings.
        records: how many.
    """
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore.open(Path(folder) / "records.sqlite", SystemClock(), ThreadOffload())
        store._connection.execute("PRAGMA synchronous=OFF")  # noqa: SLF001 - filling is not measured
        keys, embeddings = [], []
        for number in range(records):
            text = texts[number % len(texts)] + (f" part {number}" if number >= len(texts) else "")
            vector = vectors[number % len(texts)] + rng.normal(size=384) * NOISE
            embedding = quantize_embedding((vector / np.linalg.norm(vector)).tolist())
            certified, key = make.record(text, embedding)
            await store.put(certified, key, 900_000)
            keys.append(key)
            embeddings.append(embedding)
        found: dict[str, Any] = {"records": records}
        chosen = random.Random(2).sample(range(records), min(PROBES, records))
        exact, semantic = [], []
        for number in chosen:
            began = time.perf_counter()
            record = await store.get(keys[number])
            assert record is not None
            exact.append((time.perf_counter() - began) * 1000)
        policy = SemanticReuse(shipped(), Tally(), Address(bytes(20)), random.Random(3))
        for number in chosen:
            text, request = texts[number % len(texts)], make.request(texts[number % len(texts)])
            began = time.perf_counter()
            near = await store.near(embeddings[number], NEIGHBOURS, least=LEAST_COSINE)
            candidates = []
            for certified, close in near:
                record = certified.signed.record
                if same_but_question(request, record.request):
                    question, digest = record.request.question(), certified.leaf.record
                    candidates.append(
                        Candidate(digest, question, record.text, record.generator, record.embedding, close, 0)
                    )
            policy.choose(text, candidates, 20_000, compatible, make.genuine)
            semantic.append((time.perf_counter() - began) * 1000)
        store.close()
    for name, took in (("exact", exact), ("semantic", semantic)):
        found[f"{name}_p50_ms"], found[f"{name}_p99_ms"] = quantile(took, 0.5), quantile(took, 0.99)
    return found


def miss_added(questions: Sequence[str]) -> dict[str, Any]:
    """Time to the first token of public questions that nobody has answered, with and without look-ups, in turns."""
    taken: dict[str, list[float]] = {"semantic": [], "none": []}
    with tempfile.TemporaryDirectory() as folder, devnet(Path(folder)) as (urls, _pid):
        for number, question in enumerate(questions):
            reuse = "semantic" if number % 2 else "none"
            took = _first_token_s(urls[number // 2 % len(urls)], question, reuse)
            if number >= 8:  # connections and kernels are warm
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
        "ttft_questions": len(questions) - 8,
    }


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
