"""Scenario `suspended`: f+1 validators are suspended for an hour; nothing is decided, then everything goes on."""

from __future__ import annotations

from typing import Final

import trio

from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import (
    TOPICS,
    Given,
    all_anchored,
    ask,
    next_decision,
    outcome,
    start_all,
    undecided_since,
    until,
)
from nsllm.simulations.virtual import seeded

AWAY_S: Final = 3600.0
LATE_S: Final = 120.0
"""So long before the end of the hour questions are asked: their records must not expire meanwhile."""
QUESTIONS: Final = 3
DECIDE_S: Final = 120.0


async def suspended(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """More than a third of the validators, f+1, is suspended for an hour; no quorum meanwhile, then all goes on.

    Suspended means cut off from everybody while its clock goes on: what others see of a process under SIGSTOP.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "suspended")
    await start_all(network, nursery)
    peers = network.running()
    faults = (network.validators - 1) // 3
    away = rng.sample(range(network.validators), faults + 1)
    rest = [number for number in range(len(peers)) if number not in away]
    given: list[Given] = [await ask(0, peers[0], f"What should I know about {rng.choice(TOPICS)} before?")]
    await all_anchored(peers, given)
    for number in away:
        network.isolate(number)
    await trio.sleep(AWAY_S - LATE_S)
    before = max(peer.ledger.height for peer in peers)
    for count in range(QUESTIONS if rest else 0):
        number = rng.choice(rest)
        given.append(await ask(number, peers[number], f"What should I know about {rng.choice(TOPICS)} {count}?"))
        await trio.sleep(LATE_S / QUESTIONS)
    undecided_since(peers, before)
    network.heal()
    decided_s = await next_decision(peers, before, DECIDE_S)
    await all_anchored(peers, given)
    await until(lambda: len({peer.ledger.height for peer in peers}) == 1, "one height everywhere")
    return {
        "questions": len(given),
        "suspended": len(away),
        "away_s": AWAY_S,
        "decided_after_s": decided_s,
        **outcome(peers),
    }
