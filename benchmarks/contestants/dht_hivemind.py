"""One process of hivemind's DHT, with its own daemon; runs in the environment that `make bench-setup` builds for it.

Imports nothing of the product. As quick as it can be: the node lives in this process, without the second one that its
usual front puts between, and a get ends with the first value that has not expired.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.utils import get_dht_time

LIFE_S: Final = 3600.0
START_S: Final = 120.0
"""Until the daemon and the first peer answer; other processes start at the same time."""
REQUEST_S: Final = 3.0
"""As is hivemind's default."""


async def put(node: Any, keys: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    """Store values under keys."""
    took, stored = [], 0
    for key, value in zip(keys, values, strict=True):
        body = bytes.fromhex(value)
        began = time.perf_counter()
        stored += bool(await node.store(key, body, get_dht_time() + LIFE_S))
        took.append(time.perf_counter() - began)
    return {"took_s": took, "found": stored}


async def get(node: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Get values; an own copy is forgotten first, so that every get asks others."""
    took, found = [], 0
    for key in keys:
        number = DHTID.generate(source=key)
        for shelf in (node.protocol.storage, node.protocol.cache):
            shelf.data.pop(number, None)
        began = time.perf_counter()
        found += await node.get(key, latest=False) is not None
        took.append(time.perf_counter() - began)
    return {"took_s": took, "found": found}


async def serve(plan: Mapping[str, Any]) -> None:
    """Run, and do what standard input says."""
    node = await DHTNode.create(
        initial_peers=plan["bootstrap"] or None,
        host_maddrs=[plan["listen"]],
        startup_timeout=START_S,
        wait_timeout=START_S,
    )
    node.protocol.wait_timeout = REQUEST_S
    addresses = [str(address) for address in await node.get_visible_maddrs()]
    _answer({"pid": os.getpid(), "address": addresses[0]})
    while line := await asyncio.to_thread(sys.stdin.readline):
        task: Mapping[str, Any] = json.loads(line)
        match task["do"]:
            case "put":
                _answer(await put(node, task["keys"], task["values"]))
            case "get":
                _answer(await get(node, task["keys"]))
    await node.shutdown()


def _answer(values: Mapping[str, Any]) -> None:
    """One line to whoever asked."""
    print(json.dumps(values), flush=True)


def main() -> None:
    """Read the plan, and serve."""
    asyncio.run(serve(json.loads(sys.stdin.readline())))
