"""Scenarios by name: each plays in a simulated network, from a seed, and says at its end what must hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from nsllm.ids import Height
from nsllm.simulations.absent import ABSENCE_MINUTES, absent
from nsllm.simulations.byzantine import byzantine
from nsllm.simulations.churn import churn
from nsllm.simulations.colluding import colluding_scorers
from nsllm.simulations.errors import ScenarioError, UnknownScenarioError
from nsllm.simulations.fair_scores import check_scores
from nsllm.simulations.faults import GOSSIP_LOSS, faults
from nsllm.simulations.heal import heal
from nsllm.simulations.network import MAX_VALIDATORS, SimulatedNetwork, quiet
from nsllm.simulations.partition import partition
from nsllm.simulations.standin import NAME
from nsllm.simulations.steady import steady
from nsllm.simulations.suspended import suspended
from nsllm.simulations.trace import Trace
from nsllm.simulations.virtual import run_virtual

Result = dict[str, str | int | float]
AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens, and in what kind of world."""

    play: Callable[[SimulatedNetwork, trio.Nursery], Awaitable[dict[str, str | int | float]]]
    """Starts peers in the nursery, returns what it saw; raises `ScenarioError` when something does not hold."""
    gossip_loss: float = 0.0
    validators: int = MAX_VALIDATORS
    """At most so many of the peers validate."""
    virtual_s: float = 60.0
    """About how long it lasts on the virtual clock."""
    takes: str = ""
    """About what it costs, if that is much."""
    absence_minutes: int | None = None
    """Of the policy; None: as by default."""


SCENARIOS: Final[dict[str, Scenario]] = {
    "steady": Scenario(steady),
    "faults": Scenario(faults, gossip_loss=GOSSIP_LOSS, virtual_s=800.0),
    "churn": Scenario(
        churn,
        validators=7,
        virtual_s=640.0,
        takes="100 peers take a minute of processor time and 0.6 GB, 1,000 about ten and 7 GB.",
    ),
    "partition": Scenario(partition, virtual_s=260.0),
    "byzantine": Scenario(byzantine),
    "colluding-scorers": Scenario(colluding_scorers),
    "suspended": Scenario(suspended, virtual_s=3_640.0),
    "heal": Scenario(heal, validators=7, virtual_s=1_100.0),
    "absent": Scenario(absent, absence_minutes=ABSENCE_MINUTES, virtual_s=600.0),
}


def run(
    name: str,
    *,
    peers: int,
    seed: int,
    validators: int | None = None,
    trace: Callable[[Trace], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Run a scenario from a seed; the same arguments give the same result, digest included.

    Args:
        name: one of `SCENARIOS`.
        peers: how many.
        seed: determines everything.
        validators: at most so many of them validate; None: as many as the scenario says.
        trace: given what happened, every event of every peer included, also if the scenario fails.
        progress: told of virtual seconds as they pass; changes nothing.

    Raises:
        UnknownScenarioError: there is no such scenario; names those that there are.
        ScenarioError: what must hold did not, or a peer crashed; names the seed and the command that replays it.
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise UnknownScenarioError(f"there is no scenario {name!r}", hint=f"choose one of {', '.join(SCENARIOS)}")
    with tempfile.TemporaryDirectory(prefix="nsllm-sim-", dir=_memory_folder()) as folder, quiet():
        try:
            most = scenario.validators if validators is None else validators
            result = run_virtual(seed, lambda: _staged(scenario, peers, seed, most, Path(folder), trace, progress))
        except Exception as error:  # a bug in a peer fails the scenario too, with its trace behind it
            chosen = "" if validators is None else f" --validators {validators}"
            replay = f"replay with: nsllm sim {name} --peers {peers} --seed {seed}{chosen} --events"
            raise ScenarioError(f"{name} failed with seed {seed}: {_cause(error)}", hint=replay) from error
    return {"scenario": name, "peers": peers, "seed": seed, "model": NAME, **result}


async def _staged(
    scenario: Scenario,
    peers: int,
    seed: int,
    validators: int,
    folder: Path,
    trace: Callable[[Trace], None] | None,
    progress: Callable[[float], None] | None,
) -> Result:
    network = SimulatedNetwork(
        peers,
        seed,
        folder,
        gossip_loss=scenario.gossip_loss,
        validators=validators,
        keep_events=trace is not None,
        progress=progress,
        absence_minutes=scenario.absence_minutes,
    )
    try:
        return await _played(scenario, network)
    finally:
        if trace is not None:
            trace(network.trace)


async def _played(scenario: Scenario, network: SimulatedNetwork) -> Result:
    async with trio.open_nursery() as nursery:
        result = await scenario.play(network, nursery)
        network.watch.check()
        scores = await _scores_checked(network)
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
        "validators": network.validators,
        "commits_checked": network.watch.blocks,
        "signatures_checked": network.watch.signatures,
        "scores_checked": scores,
        "virtual_s": round(trio.current_time(), 6),
        "messages": network.trace.messages,
        "message_bytes": network.trace.message_bytes,
        "changes": network.trace.changes,
        "digest": network.trace.hexdigest(),
    }


async def _scores_checked(network: SimulatedNetwork) -> int:
    """How many scores of the last epoch the blocks of the furthest peer hold; each is what its rows say.

    Raises:
        InvariantError: one is not.
    """
    furthest = max(network.running(), key=lambda peer: peer.ledger.height)
    ledger, policy = furthest.ledger, furthest.parts.context.policy
    height = Height((await ledger.summary()).kept_from)
    in_force, scores = (ledger.validators.digest(), policy.digest()), 0
    while blocks := await ledger.decided(height, AT_ONCE):
        for block in (decided.block for decided in blocks):
            if (block.header.validators_hash, block.header.policy_digest) == in_force:
                about = (network.genesis.network_id(), ledger.validators, policy.rubric)
                scores += check_scores(block, *about, network.watch.byzantine)
        height = Height(blocks[-1].block.header.height + 1)
    return scores


def _cause(error: BaseException) -> str:
    """The first thing that went wrong, out of the nurseries around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, ScenarioError) else f"{type(error).__name__}: {error}"


def _memory_folder() -> str | None:
    """Where validators' logs of consensus are synced to memory, if this machine has such a folder."""
    memory = Path("/dev/shm")  # noqa: S108 - a private folder is made inside
    return str(memory) if memory.is_dir() and os.access(memory, os.W_OK) else None
