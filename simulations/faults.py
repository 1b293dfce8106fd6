"""Scenario `faults`: peers crash and come back, the power fails, the network parts and heals, announcements get lost.

Faults come one after another, at random moments, while questions are asked of whoever runs. A crash takes what was not
on disk; a partition holds messages back and lets heartbeats break connections; a third of all announcements is lost.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from nsllm.governance.verify import verify_receipt
from nsllm.ids import Digest, hex0x
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import TOPICS, Given, anchored, ask, one_history, until
from nsllm.simulations.virtual import seeded

GOSSIP_LOSS: Final = 0.3
ROUNDS: Final = 8
"""Faults, one at a time."""
QUESTIONS_A_ROUND: Final = 2
AWAY_S: Final = (1.0, 30.0)
"""Bounds of how long a crashed peer or a partition lasts, in virtual seconds."""
CONVERGE_S: Final = 600.0
"""After the last fault: votes go out again, blocks are fetched, connections are made anew."""

Fault = Callable[[SimulatedNetwork, trio.Nursery, random.Random], Awaitable[None]]


async def faults(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """Ask through faults; in the end every answer that was promised a receipt is anchored on every peer.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "faults")
    everyone = range(len(network.peers))
    for number in everyone:
        await network.start(nursery, number)
    await until(lambda: all(peer.readiness().ready for peer in network.running()), "the network connected")
    given: list[Given] = []
    happened: Counter[str] = Counter()
    for count in range(ROUNDS):
        fault = rng.choice(KINDS)
        happened[fault.__name__] += 1
        async with trio.open_nursery() as together:
            together.start_soon(fault, network, nursery, rng)
            for question in range(QUESTIONS_A_ROUND):
                together.start_soon(_ask_somebody, network, rng, f"{count}.{question}", given)
    network.space.heal()
    if len(network.running()) != len(network.peers):
        raise ScenarioError("a peer did not come back")
    await _converged(network, given)
    return {
        "questions": len(given),
        "crashes": happened["crash"],
        "blackouts": happened["blackout"],
        "restarts": happened["restart"],
        "partitions": happened["partition"],
        "height": network.running()[0].ledger.height,
        "log_size": network.running()[0].ledger.log_size,
        "log_root": hex0x(network.running()[0].ledger.log_root),
    }


async def crash(network: SimulatedNetwork, nursery: trio.Nursery, rng: random.Random) -> None:
    """One peer is killed at a random moment and comes back."""
    await trio.sleep(rng.uniform(0.0, 3.0))
    number = rng.randrange(len(network.peers))
    await network.crash(number)
    await trio.sleep(rng.uniform(*AWAY_S))
    await network.start(nursery, number)


async def blackout(network: SimulatedNetwork, nursery: trio.Nursery, rng: random.Random) -> None:
    """The power fails: everybody is killed at one moment, and comes back one by one."""
    await trio.sleep(rng.uniform(0.0, 3.0))
    async with trio.open_nursery() as dying:
        for number in range(len(network.peers)):
            dying.start_soon(network.crash, number)
    numbers = list(range(len(network.peers)))
    rng.shuffle(numbers)
    for number in numbers:
        await trio.sleep(rng.uniform(0.0, AWAY_S[1] / len(numbers)))
        await network.start(nursery, number)


async def restart(network: SimulatedNetwork, nursery: trio.Nursery, rng: random.Random) -> None:
    """One peer is stopped in order and started again."""
    await trio.sleep(rng.uniform(0.0, 3.0))
    number = rng.randrange(len(network.peers))
    network.stop(number)
    await trio.sleep(rng.uniform(*AWAY_S))
    await network.start(nursery, number)


async def partition(network: SimulatedNetwork, _nursery: trio.Nursery, rng: random.Random) -> None:
    """The network falls into two halves that do not hear each other, and heals."""
    await trio.sleep(rng.uniform(0.0, 3.0))
    names = list(range(len(network.peers)))
    rng.shuffle(names)
    size = rng.randrange(len(names) + 1)
    network.part(names[:size], names[size:])
    await trio.sleep(rng.uniform(*AWAY_S))
    network.heal()


KINDS: Final[tuple[Fault, ...]] = (crash, blackout, restart, partition)


async def _ask_somebody(network: SimulatedNetwork, rng: random.Random, label: str, given: list[Given]) -> None:
    """Ask a running peer; an answer that the end of its peer cuts off was promised nothing."""
    await trio.sleep(rng.uniform(0.0, 6.0))
    running = [simulated.number for simulated in network.peers if simulated.peer is not None]
    if running:
        number = rng.choice(running)
        with network.caller(number) as peer:
            given.append(await ask(number, peer, f"What should I know about {rng.choice(TOPICS)} {label}?"))


async def _converged(network: SimulatedNetwork, given: list[Given]) -> None:
    """Everybody ends with one history that holds every promised answer, anchored, and everybody can serve it."""
    peers = network.running()
    await until(lambda: all(peer.readiness().ready for peer in peers), "the network connected again", CONVERGE_S)
    for answer in given:
        await anchored(peers[answer.peer], answer.completion_id)
    await until(lambda: len({peer.ledger.height for peer in peers}) == 1, "one height everywhere", CONVERGE_S)
    one_history(peers)
    for answer in given:
        receipt = (await peers[answer.peer].receipt(answer.completion_id)).receipt_json
        if receipt is None:
            raise ScenarioError(f"{answer.completion_id} has no receipt")
        record = verify_receipt(receipt, network.genesis, "anchored").record
        for number, peer in enumerate(peers):
            proof = await peer.ledger.proofs.of(Digest(bytes.fromhex(record.removeprefix("0x"))))
            if proof is None or proof.anchor is None:
                raise ScenarioError(f"record {record[:18]} is not anchored on peer {number}")
    await trio.sleep(CONVERGE_S)  # what was not pushed in time is fetched and repaired
    for answer in given:
        for number, peer in enumerate(peers):
            again = await ask(number, peer, answer.question)
            if again.source != "cache":
                raise ScenarioError(f"peer {number} generated again what {answer.completion_id} answered")
