"""Scenario `partition`: the network falls in two for minutes, no part has a quorum, and it heals."""

from __future__ import annotations

from typing import Final

import trio

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

APART_S: Final = 240.0
LOST_S: Final = 20.0
"""After this long the links' loss has been noticed, and what was under way has arrived."""
QUESTIONS: Final = 6
DECIDE_S: Final = 60.0
"""After the network healed, the next block is decided within this time."""


async def partition(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """The network falls in two for four minutes and heals: answers go on uncertified, and are certified after.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "partition")
    peers, given = await begin_with_an_answer(network, nursery, rng.choice(TOPICS))
    half = network.validators // 2
    validators = list(range(network.validators))
    rng.shuffle(validators)
    followers = list(range(network.validators, len(peers)))
    rng.shuffle(followers)
    one = [*validators[:half], *followers[: len(followers) // 2]]
    other = [number for number in range(len(peers)) if number not in one]
    network.part(one, other)
    heals_s = trio.current_time() + APART_S
    await trio.sleep(LOST_S)
    before = max(peer.ledger.height for peer in peers)
    for count in range(QUESTIONS):
        number = rng.choice(one if one and count % 2 else other)
        given.append(await ask(number, peers[number], f"What should I know about {rng.choice(TOPICS)} {count}?"))
        await trio.sleep(rng.uniform(0.0, (APART_S - LOST_S) / QUESTIONS))
    await trio.sleep_until(heals_s)
    undecided_since(peers, before)
    network.heal()
    decided_s = await next_decision(peers, before, DECIDE_S)
    await all_level(peers, given)
    return {"questions": len(given), "apart_s": APART_S, "decided_after_s": decided_s, **outcome(peers)}
