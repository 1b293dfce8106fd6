"""An open-loop load generator for streamed chat completions: requests leave at their times, answered or not.

A process of its own, so that its work is not the server's: it reads a plan (JSON) from standard input and writes what
it saw to standard output. Arrivals are a Poisson process with its number of requests given: times drawn uniformly.
Lean on purpose, since it runs on the server's machine: connections are kept alive and events are counted in the bytes
as they come; only the last one, with the usage, is parsed.

Time to first token counts from when a request was due, so a generator that is late cannot flatter the server;
inter-token latency is every pause between two events with text, of all answers together.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

TEXT: Final = re.compile(rb'"(?:content|text)": ?"[^"]')
"""Of chats and of completions."""
USAGE: Final = re.compile(rb'"usage": ?(\{[^}]*\})')
SOURCE: Final = re.compile(rb"(?i)\r\nx-nsllm-source: *(\S+)")
CODE: Final = re.compile(rb'"code": ?"([^"]*)"')
END: Final = b"0\r\n\r\n"


@dataclass(slots=True, eq=False)
class Asked:
    """One request and what came of it. Times by the loop's clock, in seconds."""

    due_s: float
    body: bytes
    texts_s: list[float] = field(default_factory=list)
    """When events with text came."""
    ended_s: float | None = None
    status: int | None = None
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    source: str = ""
    fault: str = ""


class Connection(asyncio.Protocol):
    """A kept-alive connection with at most one request at a time."""

    def __init__(self, load: Load, server: int) -> None:
        self._load = load
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._asked: Asked | None = None
        self._head = b""
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the server."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, asked: Asked) -> None:
        """Send a request."""
        assert self._transport is not None
        self._asked, self._head, self._rest = asked, b"", b""
        self._transport.write(asked.body)

    def data_received(self, data: bytes) -> None:
        """Count what came."""
        asked = self._asked
        if asked is None:
            return
        now = self._load.loop.time()
        if asked.status is None:
            self._head += data
            head, blank, data = self._head.partition(b"\r\n\r\n")
            if not blank:
                return
            asked.status = int(head.split(b" ", 2)[1])
            found = SOURCE.search(head)
            asked.source = found[1].decode() if found else ""
            if asked.status != 200:
                self._end(f"status {asked.status}", now)
                return
        data = self._rest + data
        *events, self._rest = data.split(b"\n\n")
        for event in events:
            if TEXT.search(event):
                asked.texts_s.append(now)
            elif b"[DONE]" in event:
                asked.ended_s = now
            elif usage := USAGE.search(event):
                counted = json.loads(usage[1])
                asked.prompt_tokens, asked.completion_tokens = counted["prompt_tokens"], counted["completion_tokens"]
            elif b'"error"' in event:
                code = CODE.search(event)
                asked.fault = f"error event {code[1].decode() if code else ''}".rstrip()
                asked.ended_s = now
        if asked.ended_s is not None and self._rest.endswith(END):
            self._end(asked.fault, asked.ended_s, keep=True)

    def connection_lost(self, error: Exception | None) -> None:
        """A request under way fails."""
        if self._asked is not None:
            self._end(f"connection lost ({error})", self._load.loop.time())

    def _end(self, fault: str, now: float, *, keep: bool = False) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None
        assert self._transport is not None
        asked.fault, asked.ended_s = fault, now
        if keep:
            self._load.idle[self._server].append(self)
        else:
            self._transport.close()
        self._load.ended()


class Load:
    """The run of a plan: `urls`, `bodies`, `rps`, `duration_s`, `warmup`, `limit_s`, `seed`."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self._plan = plan
        self._places = [urlsplit(url) for url in plan["urls"]]
        self.idle: list[deque[Connection]] = [deque() for _ in self._places]
        self._under_way = 0
        self._nothing_under_way = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """Warm up, send everything at its time, wait for the answers or the limit."""
        bodies: list[dict[str, Any]] = self._plan["bodies"]
        warmup, count = self._plan["warmup"], round(self._plan["rps"] * self._plan["duration_s"])
        if len(bodies) < warmup + count:
            raise SystemExit(f"{len(bodies)} prompts are too few for {warmup + count} requests")
        await self._send([0.0] * warmup, bodies[:warmup])
        rng = random.Random(self._plan["seed"])
        times = sorted(rng.uniform(0, self._plan["duration_s"]) for _ in range(count))
        print("go", file=sys.stderr, flush=True)
        gc.collect()
        gc.disable()
        cpu, wall = time.process_time(), time.perf_counter()
        asked = await self._send(times, bodies[warmup : warmup + count])
        cpu_share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        return {"generator_cpu_share": cpu_share, "rows": [_row(one) for one in asked]}

    async def _send(self, times: list[float], bodies: list[dict[str, Any]]) -> list[Asked]:
        began = self.loop.time() + 0.2
        asked = []
        for number, (offset_s, body) in enumerate(zip(times, bodies, strict=True)):
            server = number % len(self._places)
            one = Asked(began + offset_s, self._bytes(server, body))
            asked.append(one)
            pause_s = one.due_s - self.loop.time()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            self._under_way += 1
            self._nothing_under_way.clear()
            if self.idle[server]:
                self.idle[server].pop().ask(one)
            else:
                task = self.loop.create_task(self._connect(server, one))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(self._plan["limit_s"]):
                while self._under_way:
                    await self._nothing_under_way.wait()
        except TimeoutError:
            self._under_way = 0
        return asked

    async def _connect(self, server: int, asked: Asked) -> None:
        place = self._places[server]
        try:
            _, connection = await self.loop.create_connection(
                lambda: Connection(self, server), place.hostname, place.port
            )
        except OSError as error:
            asked.fault, asked.ended_s = f"no connection ({error})", self.loop.time()
            self.ended()
            return
        connection.ask(asked)

    def ended(self) -> None:
        """A request came to its end."""
        self._under_way -= 1
        if self._under_way <= 0:
            self._nothing_under_way.set()

    def _bytes(self, server: int, body: dict[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        head = (
            f"POST {self._plan['path']} HTTP/1.1\r\nHost: {self._places[server].netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


def _row(asked: Asked) -> dict[str, Any]:
    """Times relative to when it was due."""
    return {
        "due_s": asked.due_s,
        "ended_s": None if asked.ended_s is None else asked.ended_s - asked.due_s,
        "texts_s": [at - asked.due_s for at in asked.texts_s],
        "completion_tokens": asked.completion_tokens,
        "prompt_tokens": asked.prompt_tokens,
        "source": asked.source,
        "status": asked.status,
        "fault": asked.fault if asked.ended_s is not None else "no answer in time",
    }


async def _main() -> None:
    plan = json.load(sys.stdin)
    print(json.dumps(await Load(plan).run()))


if __name__ == "__main__":
    asyncio.run(_main())
