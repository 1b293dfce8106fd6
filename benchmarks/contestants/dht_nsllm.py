"""One peer whose look-ups are timed: a whole peer over libp2p, its databases on disk, a stand-in for the model.

A look-up is what an answer's road takes when its own store has nothing (`FederatedCache.remote`,
`NearAnswers.elsewhere`): holders found, asked, and what they give verified, certificate included.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from benchmarks import certified
from benchmarks.messages_peer import answer, running, tasks
from nsllm import canonical
from nsllm.consensus.certified import MAX_CERTIFIED_BYTES, CertifiedRecord
from nsllm.ids import Digest
from nsllm.node.near_answers import NOTHING
from nsllm.node.peer import Peer

LIMIT_PPM: Final = 20_000
"""Wrong answers to like questions that are accepted, as by default."""


async def put(peer: Peer, values: Sequence[str]) -> dict[str, Any]:
    """Give records to their holders; a record's time ends when all have acknowledged it as on disk."""
    took, stored = [], 0
    for value in values:
        record = canonical.decode(bytes.fromhex(value), CertifiedRecord, limit_bytes=MAX_CERTIFIED_BYTES)
        began = time.perf_counter()
        stored += await peer.parts._publisher.spread(record) > 0  # noqa: SLF001 - what a publisher does last
        took.append(time.perf_counter() - began)
    return {"took_s": took, "found": stored}


async def get(peer: Peer, keys: Sequence[str]) -> dict[str, Any]:
    """Look request keys up at other peers."""
    took, found = [], 0
    for key in keys:
        began = time.perf_counter()
        found += await peer.parts.cache.remote(Digest(bytes.fromhex(key))) is not None
        took.append(time.perf_counter() - began)
    return {"took_s": took, "found": found}


async def near(peer: Peer, numbers: Sequence[int]) -> dict[str, Any]:
    """Look for answers to questions like those of these numbers at other peers.

    What was found counts also if it is not served: now and then one is generated all the same, to learn.
    """
    took, found = [], 0
    for number in numbers:
        asked, vector = certified.request(certified.like_question(number)), certified.like_embedding(number)
        began = time.perf_counter()
        verdict = await peer.parts.near.elsewhere(peer.parts.cache, asked, vector, LIMIT_PPM, NOTHING)
        took.append(time.perf_counter() - began)
        found += verdict.hit is not None or verdict.final
    return {"took_s": took, "found": found}


async def serve(plan: Mapping[str, Any]) -> None:
    """Run, and do what standard input says."""
    async with running(plan) as peer:
        answer({"pid": os.getpid()})
        async for task in tasks():
            match task["do"]:
                case "put":
                    answer(await put(peer, task["values"]))
                case "get":
                    answer(await get(peer, task["keys"]))
                case "near":
                    answer(await near(peer, task["numbers"]))


def main() -> None:
    """Read the plan, and serve."""
    trio.run(serve, json.loads(sys.stdin.readline()))
