"""Scenario `byzantine`: f validators equivocate, stay silent, flood or commit twice, on a whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from nsllm.governance.ledger import Ledger
from nsllm.ids import Address
from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import TOPICS, Given, all_anchored, ask, outcome, start_all, until
from nsllm.simulations.twisted import COMMITS_TWICE, HABITS, twist
from nsllm.simulations.virtual import seeded

QUESTIONS: Final = 6


async def byzantine(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """A third of the validators, f, has a bad habit: the others agree, accuse nobody honest, convict who commits twice.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "byzantine")
    faults = (network.validators - 1) // 3
    chosen = rng.sample(range(network.validators), faults)
    habits = {number: HABITS[(network.seed + order) % len(HABITS)] for order, number in enumerate(chosen)}
    for number, habit in habits.items():
        network.twists[number] = _twisting(network, number, habit)
    network.watch.byzantine = frozenset(network.peers[number].settled.identity.address for number in chosen)
    await start_all(network, nursery)
    peers = network.running()
    honest = [number for number in range(len(peers)) if number not in habits]
    given: list[Given] = []
    for count in range(QUESTIONS):
        await trio.sleep(rng.uniform(0.5, 5.0))
        number = rng.choice(honest)
        given.append(await ask(number, peers[number], f"What should I know about {rng.choice(TOPICS)} {count}?"))
    await all_anchored(peers, given)
    good = [peers[number] for number in honest]
    liars = [network.peers[number].settled.identity.address for number in habits if habits[number] == COMMITS_TWICE]
    await until(
        lambda: all(_weight_of(peer.ledger, liar) == 0 for peer in good for liar in liars),
        "every honest ledger convicts whoever committed twice",
    )
    await until(lambda: len({peer.ledger.height for peer in good}) == 1, "one height on every honest peer")
    return {
        "questions": len(given),
        "byzantine": ", ".join(f"peer {number}: {habit}" for number, habit in sorted(habits.items())) or "nobody",
        "offences_seen": network.watch.accusations,
        **outcome(good),
    }


def _weight_of(ledger: Ledger, address: Address) -> int:
    """What a member's voice counts."""
    member = ledger.registry.get(address)
    return 0 if member is None else member.weight


def _twisting(network: SimulatedNetwork, number: int, habit: str) -> Callable[..., None]:
    identity = network.peers[number].settled.identity
    return lambda peer: twist(peer, identity.member, habit)
