"""Scenarios: what happens in a simulated network, and what must hold when it is over."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from nsllm.governance.verify import verify_receipt
from nsllm.ids import hex0x
from nsllm.node.peer import Peer
from nsllm.node.service import ChatCommand, ChatFinished, ChatStarted
from nsllm.record import Message, Sampling
from nsllm.simulations.errors import ScenarioError, UnknownScenarioError
from nsllm.simulations.network import SimulatedNetwork, quiet
from nsllm.simulations.standin import NAME
from nsllm.simulations.virtual import run_virtual, seeded

Result = dict[str, str | int | float]
Scenario = Callable[[SimulatedNetwork], Awaitable[Result]]

SETTLE_S: Final = 120.0
"""Virtual seconds after which a question must be anchored, or the scenario fails."""
TOPICS: Final = ("rivers", "planets", "bread", "bridges", "music", "vaccines", "tides", "glass")


def run(name: str, *, peers: int, seed: int) -> Result:
    """Run a scenario from a seed; the same arguments give the same result, digest included.

    Raises:
        UnknownScenarioError: there is no such scenario; names those that there are.
        ScenarioError: what must hold did not; names the seed and the command that replays it.
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise UnknownScenarioError(f"there is no scenario {name!r}", hint=f"choose one of {', '.join(SCENARIOS)}")
    with tempfile.TemporaryDirectory(prefix="nsllm-sim-") as folder, quiet():
        result = run_virtual(seed, lambda: _staged(scenario, peers, seed, Path(folder)))
    return {"scenario": name, "peers": peers, "seed": seed, "model": NAME, **result}


async def _staged(scenario: Scenario, peers: int, seed: int, folder: Path) -> Result:
    network = SimulatedNetwork(peers, seed, folder)
    async with trio.open_nursery() as nursery:
        for number in range(peers):
            await network.start(nursery, number)
        result = await scenario(network)
        for peer in network.running():
            header = await peer.ledger.header(peer.ledger.height)
            if header is not None:
                network.trace.state("header", header.id())
            network.trace.state("log", peer.ledger.log_root)
        nursery.cancel_scope.cancel()
    return {
        **result,
        "virtual_s": round(trio.current_time(), 6),
        "messages": network.trace.messages,
        "message_bytes": network.trace.message_bytes,
        "changes": network.trace.changes,
        "digest": network.trace.hexdigest(),
    }


async def steady(network: SimulatedNetwork) -> Result:
    """Everybody asks; every fourth question was asked elsewhere before. All answers end anchored, receipts verify."""
    rng = seeded(network.seed, "steady")
    peers = network.running()
    await _until(lambda: all(peer.readiness().ready for peer in peers), network, "the network connected")
    asked: list[str] = []
    given: list[tuple[Peer, str]] = []
    hits = 0
    for number in range(2 * len(peers)):
        await trio.sleep(rng.uniform(0.1, 1.5))
        repeat = number % 4 == 3
        text = rng.choice(asked[:-1] or asked) if repeat else f"What should I know about {rng.choice(TOPICS)} {number}?"
        asked.append(text)
        peer = rng.choice(peers)
        completion_id, source = await _ask(peer, text)
        given.append((peer, completion_id))
        hits += source == "cache"
        if not repeat:
            await _anchored(network, peer, completion_id)
    for peer, completion_id in given:
        await _anchored(network, peer, completion_id)
    await _until(lambda: len({peer.ledger.height for peer in peers}) == 1, network, "one height everywhere")
    peer, completion_id = given[-1]
    receipt = (await peer.receipt(completion_id)).receipt_json
    if receipt is None:
        raise _failed(network, "the last answer has no receipt")
    verify_receipt(receipt, network.genesis, "anchored")
    roots = {peer.ledger.log_root for peer in peers}
    if len(roots) != 1:
        raise _failed(network, f"{len(roots)} different log roots at height {peers[0].ledger.height}")
    return {
        "questions": len(given),
        "cache_hits": hits,
        "height": peers[0].ledger.height,
        "log_size": peers[0].ledger.log_size,
        "log_root": hex0x(peers[0].ledger.log_root),
    }


SCENARIOS: Final[dict[str, Scenario]] = {"steady": steady}


async def _ask(peer: Peer, text: str) -> tuple[str, str]:
    """(completion id, source) of one question."""
    command = ChatCommand(
        model="default", messages=(Message(role="user", content=text),), sampling=Sampling(), visibility=None
    )
    started: ChatStarted | None = None
    finished: ChatFinished | None = None
    async with peer.chat(command) as events:
        async for event in events:
            if isinstance(event, ChatStarted):
                started = event
            elif isinstance(event, ChatFinished):
                finished = event
    if started is None or finished is None or finished.publication not in {"pending", "certified"}:
        raise ScenarioError(f"an answer was not published: {finished}")
    return started.completion_id, started.source.kind


async def _anchored(network: SimulatedNetwork, peer: Peer, completion_id: str) -> None:
    with trio.move_on_after(SETTLE_S):
        while (await peer.receipt(completion_id)).state != "anchored":  # noqa: ASYNC110 - virtual time costs nothing
            await trio.sleep(0.1)
        return
    status = await peer.receipt(completion_id)
    raise _failed(network, f"{completion_id} is {status.state} after {SETTLE_S} virtual seconds")


async def _until(holds: Callable[[], bool], network: SimulatedNetwork, what: str) -> None:
    with trio.move_on_after(SETTLE_S):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.05)
        return
    raise _failed(network, f"not within {SETTLE_S} virtual seconds: {what}")


def _failed(network: SimulatedNetwork, what: str) -> ScenarioError:
    count = len(network.peers)
    return ScenarioError(what, hint=f"replay with: nsllm sim steady --peers {count} --seed {network.seed}")
