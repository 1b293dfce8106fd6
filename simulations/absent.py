"""Scenario `absent`: f validators are gone for good; they leave at an epoch boundary, and one comes back by motion."""

from __future__ import annotations

from typing import Final

import trio

from nsllm.consensus.attendance import MIN_VALIDATORS, TURNS
from nsllm.ids import hex0x
from nsllm.node.service import Wish
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import TOPICS, Given, all_level, ask, outcome, start_all, until
from nsllm.simulations.virtual import seeded

ABSENCE_MINUTES: Final = 5
"""In place of hours: what the policy of this network says."""
PAUSE_S: Final = 25.0
"""Between two questions; each makes a few blocks, because its score is anchored."""


async def absent(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """A third of the validators, f, is killed: they leave after a window, nobody else does, and one comes back.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "absent")
    await start_all(network, nursery)
    size = network.validators
    faults = (size - 1) // 3
    gone = sorted(rng.sample(range(size), faults))
    leaving = min(faults, max(0, size - MIN_VALIDATORS))
    here = [number for number in range(len(network.peers)) if number not in gone]
    for number in gone:
        await network.crash(number)
    peers = {number: network.peers[number].peer for number in here}
    first = network.running()[0]
    names = {number: simulated.settled.identity.address for number, simulated in enumerate(network.peers)}
    given: list[Given] = []
    began_s = trio.current_time()
    windows = 2 * max(ABSENCE_MINUTES * 60.0, TURNS * size * PAUSE_S)
    while trio.current_time() < began_s + windows and first.ledger.validators.epoch == 0:
        number = rng.choice(here)
        peer = peers[number]
        if peer is None:
            raise ScenarioError(f"peer {number} is not running")
        given.append(await ask(number, peer, f"What should I know about {rng.choice(TOPICS)} {len(given)}?"))
        await trio.sleep(rng.uniform(PAUSE_S / 2, PAUSE_S))
    left_s = trio.current_time() - began_s
    away = set(first.ledger.registry.state.absent)
    if len(away) != leaving or not away <= {names[number] for number in gone}:
        raise ScenarioError(f"{len(away)} validators left, {leaving} of the {faults} that are gone should have")
    for number in gone:
        await network.start(nursery, number)
    everybody = network.running()
    await until(lambda: len({peer.ledger.height for peer in everybody}) == 1, "one height everywhere")
    back = next((number for number in gone if names[number] in away), None)
    if back is not None:
        await _admit(network, here, back)
    await all_level(everybody, given)
    return {
        "questions": len(given),
        "gone": len(gone),
        "left": len(away),
        "left_after_s": round(left_s, 3),
        "epoch": first.ledger.validators.epoch,
        **outcome(everybody),
    }


async def _admit(network: SimulatedNetwork, here: list[int], number: int) -> None:
    """Everybody who validates approves that a validator comes back; then it validates.

    Raises:
        ScenarioError: it does not.
    """
    address = network.peers[number].settled.identity.address
    voters = [peer for each in here if each < network.validators and (peer := network.peers[each].peer) is not None]
    motion = await voters[0].propose_motion(Wish(kind="admit", address=hex0x(address)))
    for voter in voters[1:]:
        ledger = voter.ledger
        await until(lambda its=ledger: its.motions() or address in its.validators, "the motion is known")  # type: ignore[misc]
        if ledger.motions():
            await voter.approve_motion(hex0x(motion))
    peers = network.running()
    await until(lambda: all(address in peer.ledger.validators for peer in peers), f"peer {number} validates again")
