"""What a look-up sends in simulated networks of up to 1,000 peers: messages, dials, walks of the DHT, virtual time.

Peers are whole ones on virtual time (`nsllm.simulations`), each link takes 5 to 30 ms one way. Records are genuine
(`benchmarks.certified`) and lie at their holders; who asks holds no copy. Each look-up is done twice: at first a peer
of a large network is not connected to the holder, the second time it is, for a while.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks import certified
from benchmarks.certified import Certifier
from nsllm.consensus.certified import CertifiedRecord
from nsllm.ids import Digest
from nsllm.node.near_answers import NOTHING
from nsllm.node.peer import Peer
from nsllm.p2p.memory_world import TraceEvent
from nsllm.p2p.protocols.fetch import FETCH
from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.virtual import run_virtual, seeded

SEED: Final = 1
VALIDATORS: Final = 7
RECORDS: Final = 40
ARRIVAL_S: Final = 30.0
"""Peers start one after another within this time."""
SETTLE_S: Final = 60.0
ARRIVED_S: Final = 0.25
"""After a look-up; what it sent last has arrived then: a link takes 30 ms at most."""
LIMIT_PPM: Final = 20_000
ROUND_TRIP: Final = 2
"""Messages of a dial, of opening a stream, of a question and its answer."""
ALPHA: Final = 3
"""Peers that a step of Kademlia's walk asks. A walk is not simulated message by message: it takes log2 of n steps."""

LookUp = Callable[[Peer, int, CertifiedRecord], Awaitable[bool]]


async def hit(peer: Peer, _number: int, record: CertifiedRecord) -> bool:
    """An exact look-up of what is there."""
    return await peer.parts.cache.remote(record.leaf.request_key) is not None


async def near_hit(peer: Peer, number: int, _record: CertifiedRecord) -> bool:
    """A look-up by meaning of what is there."""
    asked, vector = certified.request(certified.like_question(number)), certified.like_embedding(number)
    verdict = await peer.parts.near.elsewhere(peer.parts.cache, asked, vector, LIMIT_PPM, NOTHING)
    return verdict.hit is not None or verdict.final


async def miss(peer: Peer, number: int, _record: CertifiedRecord) -> bool:
    """An exact look-up of what is nowhere."""
    return await peer.parts.cache.remote(Digest(hashlib.sha256(b"%d" % number).digest())) is None


LOOK_UPS: Final[dict[str, LookUp]] = {"hit": hit, "near_hit": near_hit, "miss": miss}


class Count:
    """Of everything that one asker's look-up sends and causes."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.seen: Counter[str] = Counter()
        self._asker = ""
        self._peers = len(network.peers)
        tell = network.space._on_event  # noqa: SLF001 - the hook that the trace hangs on

        def told(event: TraceEvent) -> None:
            if tell is not None:
                tell(event)
            _, kind, source, target, label, _, _ = event
            if self._asker in (source, target) and label == FETCH and kind in {"data", "open"}:
                self.seen[kind] += 1
            elif source == self._asker and kind == "connect":
                self.seen["dial"] += 1

        network.space._on_event = told  # noqa: SLF001

    async def of(self, peer: Peer, look_up: Callable[[], Awaitable[bool]]) -> dict[str, float]:
        """One look-up's numbers."""
        network = peer.parts._world.network  # noqa: SLF001
        self._asker = network.peer_id
        find, walks = network.find_providers, 0

        async def walked(key: bytes, limit: int = 8) -> Any:
            nonlocal walks
            walks += 1
            return await find(key, limit)

        network.find_providers = walked  # type: ignore[method-assign]
        self.seen.clear()
        began_s = trio.current_time()
        as_expected = await look_up()
        took_s = trio.current_time() - began_s
        network.find_providers = find  # type: ignore[method-assign]
        await trio.sleep(ARRIVED_S)
        steps = math.log2(self._peers) * ALPHA * walks
        messages = self.seen["data"] + ROUND_TRIP * (self.seen["open"] + self.seen["dial"] + steps)
        return {
            "as_expected": as_expected,
            "messages": messages,
            "dials": self.seen["dial"],
            "walks": walks,
            "ms": took_s * 1000,
        }


def costs(peers: int) -> dict[str, Any]:
    """Means over `RECORDS` look-ups of each kind, cold and warm, in a network of so many peers."""
    found: dict[str, Any] = {}
    began = time.process_time()

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            network = SimulatedNetwork(peers, SEED, Path(folder), validators=VALIDATORS)
            async with trio.open_nursery() as nursery:
                for number in range(peers):
                    await network.start(nursery, number)
                    await trio.sleep(ARRIVAL_S / peers)
                await trio.sleep(SETTLE_S)
                found.update(await _counted(network))
                nursery.cancel_scope.cancel()

    with quiet():
        run_virtual(SEED, main)
    took_s = time.process_time() - began
    print(f"{peers} simulated peers: {found['hit_messages']:.1f} messages a hit, {took_s:.0f} s", file=sys.stderr)
    return found


async def _counted(network: SimulatedNetwork) -> dict[str, float]:
    rng = seeded(SEED, "look-ups")
    keys = [peer.settled.identity.member for peer in network.peers[: network.validators]]
    certifier, running = Certifier(network.genesis, keys), network.running()
    by_address = {peer.parts.context.address: peer for peer in running}
    count = Count(network)
    taken: dict[str, list[dict[str, float]]] = {}
    for number in range(RECORDS):
        record = certifier.record(number)
        holders = running[0].parts.cache.holders_of_record(record)
        for holder in holders:
            await by_address[holder].parts.cache.hold(record)
        free = [peer for peer in running if peer.parts.context.address not in holders]
        asker = rng.choice(free or running)
        for name, look_up in LOOK_UPS.items():
            for state in ("cold_", ""):
                one = await count.of(asker, lambda: look_up(asker, number, record))  # noqa: B023
                taken.setdefault(state + name, []).append(one)
    return {
        f"{name}_{what}": statistics.fmean(one[what] for one in many)
        for name, many in taken.items()
        for what in ("messages", "dials", "walks", "ms", "as_expected")
    }
