"""Agreement without network and processes: whole simulated networks in this one, on virtual time.

Messages and bytes are counted where they are sent; CPU time is this process's, divided by decisions: what all peers
together compute for one. Disk is the growth of the peers' databases between two numbers of answers.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import trio

from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.questions import anchored, ask
from nsllm.simulations.virtual import run_virtual

SEED: Final = 1
SETTLE_S: Final = 60.0
"""Virtual seconds after the last answer: copies reach their holders, and every log its checkpoint."""


def agreed(peers: int, answers: int) -> dict[str, float]:
    """Costs of a decision in a network of `peers`, after a first answer that is not counted."""
    found: dict[str, float] = {}

    async def play(network: SimulatedNetwork) -> None:
        await _ask(network, 1, "first")
        height, began = network.running()[0].ledger.height, time.process_time()
        messages, size = network.trace.messages, network.trace.message_bytes
        await _ask(network, answers, "then")
        decisions = network.running()[0].ledger.height - height
        found.update(
            decisions=decisions,
            cpu_ms_per_decision=(time.process_time() - began) * 1000 / decisions,
            messages_per_decision=(network.trace.messages - messages) / decisions,
            kb_per_decision=(network.trace.message_bytes - size) / decisions / 1000,
        )

    _run(peers, play)
    return found


def disk(fewer: int, more: int, peers: int = 4) -> dict[str, Any]:
    """Megabytes that a peer's databases grow by in 1,000 answers, and the tables that grow most."""
    sizes: list[dict[str, int]] = []

    async def play(network: SimulatedNetwork) -> None:
        for count, name in ((fewer, "few"), (more - fewer, "more")):
            await _ask(network, count, name)
            await trio.sleep(SETTLE_S)
            sizes.append(_sizes(network))

    _run(peers, play)
    per = 1000 / (more - fewer) / peers / 1e6
    grown = {name: (size - sizes[0].get(name, 0)) * per for name, size in sizes[1].items()}
    tables = dict(sorted(grown.items(), key=lambda item: -item[1]))
    return {"disk_mb_per_1000_answers": sum(grown.values()), "disk_mb_by_table": tables}


def _run(peers: int, play: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, quiet():

        async def main() -> None:
            network = SimulatedNetwork(peers, SEED, Path(folder), on_disk=True)
            async with trio.open_nursery() as nursery:
                for number in range(peers):
                    await network.start(nursery, number)
                await trio.sleep(10)  # until all are connected
                await play(network)
                nursery.cancel_scope.cancel()

        run_virtual(SEED, main)


async def _ask(network: SimulatedNetwork, count: int, name: str) -> None:
    """Ask questions, one after the other, of each peer in turn; returns once each is anchored."""
    peers = network.running()
    for number in range(count):
        peer = peers[number % len(peers)]
        given = await ask(number, peer, f"What is the use of the thing called {name} number {number}?")
        await anchored(peer, given.completion_id)


def _sizes(network: SimulatedNetwork) -> dict[str, int]:
    """Bytes of every table and index of all peers' databases, by file and name."""
    found: dict[str, int] = {}
    for simulated in network.peers:
        for path in sorted(simulated.settled.config.data_dir.glob("*.sqlite")):
            for name, size in _tables(path).items():
                key = f"{path.stem}.{name}"
                found[key] = found.get(key, 0) + size
    return found


def _tables(path: Path) -> Mapping[str, int]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name"))
    finally:
        connection.close()
