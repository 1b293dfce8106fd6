"""Scenario `churn`: a large network for ten minutes, a question a peer, while a tenth of the peers goes and comes."""

from __future__ import annotations

from typing import Final

import trio

from nsllm.ids import hex0x
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import TOPICS, Given, anchored, ask, one_history, until
from nsllm.simulations.virtual import seeded

MINUTES: Final = 10
ARRIVAL_S: Final = 30.0
"""Peers start one after another within this time."""
CHURN: Final = 10
"""One of so many peers goes away and comes back, half of them killed, half of them stopped in order."""
AWAY_S: Final = (10.0, 120.0)
REPEATS: Final = 4
"""One question of so many was asked before, of another peer."""


async def churn(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """Ten minutes, a question a peer, a tenth of all peers goes and comes; every answer ends anchored.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "churn")
    count = len(network.peers)
    end_s = trio.current_time() + 60.0 * MINUTES
    arrivals = sorted(rng.uniform(0.0, ARRIVAL_S) for _ in range(count - 1))
    given: list[Given] = []
    asked: list[str] = []
    leaving = rng.sample(range(1, count), count // CHURN)
    awaited = {"cut off": 0}

    async def questioner(number: int, at_s: float) -> None:
        await trio.sleep_until(at_s)
        repeat = bool(asked) and rng.randrange(REPEATS) == 0
        text = rng.choice(asked) if repeat else f"What should I know about {rng.choice(TOPICS)} {number}?"
        while network.peers[number].peer is None:  # noqa: ASYNC110 - virtual time costs nothing
            await trio.sleep(1.0)
        with network.caller(number) as peer:
            answer = await ask(number, peer, text)
            given.append(answer)
            asked.append(text)
            return
        awaited["cut off"] += 1

    async def leaver(number: int, at_s: float, away_s: float, killed: bool) -> None:
        await trio.sleep_until(at_s)
        if killed:
            await network.crash(number)
        else:
            network.stop(number)
        await trio.sleep(away_s)
        await network.start(nursery, number)

    async with trio.open_nursery() as running:
        await network.start(nursery, 0)
        began_s = trio.current_time()
        for number, at_s in enumerate(arrivals, start=1):
            await trio.sleep_until(began_s + at_s)
            await network.start(nursery, number)
        first_s = trio.current_time() + 5.0
        for number in range(count):
            running.start_soon(questioner, number, rng.uniform(first_s, end_s))
        for order, number in enumerate(leaving):
            at_s = rng.uniform(first_s, end_s - AWAY_S[1])
            running.start_soon(leaver, number, at_s, rng.uniform(*AWAY_S), order % 2 == 0)
    peers = network.running()
    for answer in given:
        await anchored(peers[answer.peer], answer.completion_id)
    await until(lambda: len({peer.ledger.height for peer in peers}) == 1, "one height everywhere")
    one_history(peers)
    if len(given) + awaited["cut off"] != count:
        raise ScenarioError(f"{count} questions, {len(given)} answers and {awaited['cut off']} cut off")
    return {
        "questions": len(given),
        "cut_off": awaited["cut off"],
        "cache_hits": sum(answer.source == "cache" for answer in given),
        "departures": len(leaving),
        "height": peers[0].ledger.height,
        "log_size": peers[0].ledger.log_size,
        "log_root": hex0x(peers[0].ledger.log_root),
    }
