"""Scenario `suspended`: f+1 validators are suspended for an hour; nothing is decided, then everything goes on."""

from __future__ import annotations

from typing import Final

import trio

from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import (
    TOPICS,
    all_level,
    ask,
    begin_with_an_answer,
    next_decision,
    outcome,
    undecided_since,
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
    peers, given = await begin_with_an_answer(network, nursery, rng.choice(TOPICS))
    faults = (network.validators - 1) // 3
    away = rng.sample(range(network.validators), faults + 1)
    rest = [number for number in range(len(peers)) if number not in away]
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
    await all_level(peers, given)
    if peers[0].ledger.validators.epoch:
        raise ScenarioError("somebody was counted absent while the network stood still")
    return {
        "questions": len(given),
        "suspended": len(away),
        "away_s": AWAY_S,
        "decided_after_s": decided_s,
        **outcome(peers),
    }
