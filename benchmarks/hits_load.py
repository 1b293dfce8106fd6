"""A closed-loop load generator: each kept-alive connection asks again as soon as it has its answer.

A process of its own, so that its work is not the server's: it reads a plan (JSON) from standard input and writes what
it saw to standard output. Lean on purpose: requests are bytes that were made before, replies are looked at for status,
source and length only.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from typing import Any, Final
from urllib.parse import urlsplit

HEAD: Final = re.compile(rb"(?i)\r\n(content-length|x-nsllm-source|x-nsllm-match): *([^\r]*)")


class Asking(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._turn = number
        self._data = b""
        self._began_s = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Ask again once the answer is whole."""
        self._data += data
        head, blank, body = self._data.partition(b"\r\n\r\n")
        if not blank:
            return
        fields = {name.lower(): value for name, value in HEAD.findall(head)}
        if len(body) < int(fields[b"content-length"]):
            return
        kind = " ".join(
            [head[9:12].decode(), *(fields.get(n, b"").decode() for n in (b"x-nsllm-source", b"x-nsllm-match"))]
        )
        self._load.answered(kind, time.perf_counter() - self._began_s)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        """The server closed it."""
        self._load.answered(f"connection lost ({error})", 0.0)

    def _ask(self) -> None:
        assert self._transport is not None
        if self._load.over:
            self._transport.abort()
            return
        self._turn += 1
        self._data, self._began_s = b"", time.perf_counter()
        self._transport.write(self._load.requests[self._turn % len(self._load.requests)])


class Load:
    """The run of a plan: `url`, `bodies`, `connections`, `duration_s`."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._place = urlsplit(plan["url"])
        self.requests = [self._bytes(body) for body in plan["bodies"]]
        self.over = False
        self._kinds: Counter[str] = Counter()
        self._took_s: list[float] = []

    async def run(self) -> dict[str, Any]:
        """Ask for so long; how many answers of each kind, and the times of all."""
        loop = asyncio.get_running_loop()
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(self._plan["connections"]):
            await loop.create_connection(lambda n=number: Asking(self, n), self._place.hostname, self._place.port)
        await asyncio.sleep(self._plan["duration_s"])
        self.over = True
        elapsed_s = time.perf_counter() - began
        took = sorted(self._took_s)
        return {
            "elapsed_s": elapsed_s,
            "kinds": dict(self._kinds),
            "p50_ms": took[len(took) // 2] * 1000,
            "p99_ms": took[len(took) * 99 // 100] * 1000,
            "generator_cpu_share": (time.process_time() - cpu) / elapsed_s,
        }

    def answered(self, kind: str, took_s: float) -> None:
        """One answer came."""
        if not self.over:
            self._kinds[kind] += 1
            self._took_s.append(took_s)

    def _bytes(self, body: dict[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._place.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load(json.load(sys.stdin)).run())))
