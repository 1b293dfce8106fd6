"""Scenarios by name: each plays in a simulated network, from a seed, and says at its end what must hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from nsllm.simulations.churn import churn
from nsllm.simulations.errors import ScenarioError, UnknownScenarioError
from nsllm.simulations.faults import GOSSIP_LOSS, faults
from nsllm.simulations.network import MAX_VALIDATORS, SimulatedNetwork, quiet
from nsllm.simulations.standin import NAME
from nsllm.simulations.steady import steady
from nsllm.simulations.virtual import run_virtual

Result = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens, and in what kind of world."""

    play: Callable[[SimulatedNetwork, trio.Nursery], Awaitable[dict[str, str | int]]]
    """Starts peers in the nursery, returns what it saw; raises `ScenarioError` when something does not hold."""
    gossip_loss: float = 0.0
    validators: int = MAX_VALIDATORS
    """At most so many of the peers validate."""


SCENARIOS: Final[dict[str, Scenario]] = {
    "steady": Scenario(steady),
    "faults": Scenario(faults, gossip_loss=GOSSIP_LOSS),
    "churn": Scenario(churn, validators=7),
}


def run(name: str, *, peers: int, seed: int) -> Result:
    """Run a scenario from a seed; the same arguments give the same result, digest included.

    Raises:
        UnknownScenarioError: there is no such scenario; names those that there are.
        ScenarioError: what must hold did not, or a peer crashed; names the seed and the command that replays it.
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise UnknownScenarioError(f"there is no scenario {name!r}", hint=f"choose one of {', '.join(SCENARIOS)}")
    with tempfile.TemporaryDirectory(prefix="nsllm-sim-", dir=_memory_folder()) as folder, quiet():
        try:
            result = run_virtual(seed, lambda: _staged(scenario, peers, seed, Path(folder)))
        except Exception as error:  # a bug in a peer fails the scenario too, with its trace behind it
            replay = f"replay with: nsllm sim {name} --peers {peers} --seed {seed}"
            raise ScenarioError(f"{name} failed with seed {seed}: {_cause(error)}", hint=replay) from error
    return {"scenario": name, "peers": peers, "seed": seed, "model": NAME, **result}


async def _staged(scenario: Scenario, peers: int, seed: int, folder: Path) -> Result:
    network = SimulatedNetwork(peers, seed, folder, gossip_loss=scenario.gossip_loss, validators=scenario.validators)
    async with trio.open_nursery() as nursery:
        result = await scenario.play(network, nursery)
        for peer in network.running():
            header = await peer.ledger.header(peer.ledger.height)
            if header is not None:
                network.trace.state("header", header.id())
            network.trace.state("log", peer.ledger.log_root)
        for simulated in network.peers:
            simulated.disk.discard()
        nursery.cancel_scope.cancel()
    return {
        **result,
        "virtual_s": round(trio.current_time(), 6),
        "messages": network.trace.messages,
        "message_bytes": network.trace.message_bytes,
        "changes": network.trace.changes,
        "digest": network.trace.hexdigest(),
    }


def _cause(error: BaseException) -> str:
    """The first thing that went wrong, out of the nurseries around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, ScenarioError) else f"{type(error).__name__}: {error}"


def _memory_folder() -> str | None:
    """Where validators' logs of consensus are synced to memory, if this machine has such a folder."""
    memory = Path("/dev/shm")  # noqa: S108 - a private folder is made inside
    return str(memory) if memory.is_dir() and os.access(memory, os.W_OK) else None
