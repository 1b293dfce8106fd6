"""What scenarios do again and again: ask a peer, wait until something holds, and say what did not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import trio

from nsllm.ids import hex0x
from nsllm.node.chat import ChatCommand, ChatFinished, ChatStarted
from nsllm.node.peer import Peer
from nsllm.record import Message, Sampling
from nsllm.simulations.errors import ScenarioError

if TYPE_CHECKING:
    from nsllm.simulations.network import SimulatedNetwork

SETTLE_S: Final = 120.0
"""Virtual seconds within which what a scenario waits for must come true."""
TOPICS: Final = ("rivers", "planets", "bread", "bridges", "music", "vaccines", "tides", "glass")


@dataclass(frozen=True, slots=True)
class Given:
    """An answer that was given with the promise of a receipt."""

    peer: int
    """Number of the peer that gave it."""
    completion_id: str
    question: str
    source: Literal["engine", "cache"]


async def ask(number: int, peer: Peer, text: str) -> Given:
    """Ask one question.

    Raises:
        ScenarioError: the answer is not on its way to publication.
    """
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
    return Given(number, started.completion_id, text, started.source.kind)


async def anchored(peer: Peer, completion_id: str) -> None:
    """Wait until a completion's receipt is anchored.

    Raises:
        ScenarioError: it is not within `SETTLE_S`.
    """
    with trio.move_on_after(SETTLE_S):
        while (await peer.receipt(completion_id)).state != "anchored":  # noqa: ASYNC110 - virtual time costs nothing
            await trio.sleep(0.1)
        return
    status = await peer.receipt(completion_id)
    raise ScenarioError(f"{completion_id} is {status.state} after {SETTLE_S} virtual seconds: {status.detail}")


async def until(holds: Callable[[], bool], what: str, within_s: float = SETTLE_S) -> None:
    """Wait until something holds.

    Raises:
        ScenarioError: it does not within the time; names it.
    """
    with trio.move_on_after(within_s):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.05)
        return
    raise ScenarioError(f"not within {within_s} virtual seconds: {what}")


def one_history(peers: list[Peer]) -> None:
    """All peers stand at one height with one log.

    Raises:
        ScenarioError: they do not.
    """
    heights = {peer.ledger.height for peer in peers}
    roots = {peer.ledger.log_root for peer in peers}
    if len(heights) != 1 or len(roots) != 1:
        raise ScenarioError(f"{len(roots)} different log roots at heights {sorted(heights)}")


async def start_all(network: SimulatedNetwork, nursery: trio.Nursery) -> None:
    """Start every peer, and wait until all are connected."""
    for number in range(len(network.peers)):
        await network.start(nursery, number)
    await until(lambda: all(peer.readiness().ready for peer in network.running()), "the network connected")


async def all_anchored(peers: list[Peer], given: list[Given]) -> None:
    """Wait until every answer's receipt is anchored.

    Raises:
        ScenarioError: one is not in time.
    """
    for answer in given:
        await anchored(peers[answer.peer], answer.completion_id)


async def begin_with_an_answer(
    network: SimulatedNetwork, nursery: trio.Nursery, topic: str
) -> tuple[list[Peer], list[Given]]:
    """Start every peer and anchor a first answer, so that whatever happens next happens to a network that works."""
    await start_all(network, nursery)
    peers = network.running()
    given = [await ask(0, peers[0], f"What should I know about {topic} before?")]
    await all_anchored(peers, given)
    return peers, given


async def all_level(peers: list[Peer], given: list[Given]) -> None:
    """Wait until every answer is anchored and all peers stand at one height.

    Raises:
        ScenarioError: not in time.
    """
    await all_anchored(peers, given)
    await until(lambda: len({peer.ledger.height for peer in peers}) == 1, "one height everywhere")


def undecided_since(peers: list[Peer], height: int) -> None:
    """Nobody has decided anything above a height.

    Raises:
        ScenarioError: somebody has, without a quorum.
    """
    highest = max(peer.ledger.height for peer in peers)
    if highest > height:
        raise ScenarioError(f"block {highest} was decided where no part of the network has a quorum")


async def next_decision(peers: list[Peer], above: int, within_s: float) -> float:
    """Wait for a block above a height on every peer; seconds until the first peer had one.

    Raises:
        ScenarioError: there is none in time.
    """
    began_s = trio.current_time()
    await until(lambda: any(p.ledger.height > above for p in peers), f"a block above {above} somewhere", within_s)
    first_s = trio.current_time() - began_s
    await until(lambda: all(p.ledger.height > above for p in peers), f"a block above {above} everywhere")
    return round(first_s, 3)


def outcome(peers: list[Peer]) -> dict[str, str | int | float]:
    """Where the network ended: one height, one log.

    Raises:
        ScenarioError: it did not end in one history.
    """
    one_history(peers)
    ledger = peers[0].ledger
    return {"height": ledger.height, "log_size": ledger.log_size, "log_root": hex0x(ledger.log_root)}
