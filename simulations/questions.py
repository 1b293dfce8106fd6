"""What scenarios do again and again: ask a peer, wait until something holds, and say what did not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import trio

from nsllm.node.peer import Peer
from nsllm.node.service import ChatCommand, ChatFinished, ChatStarted
from nsllm.record import Message, Sampling
from nsllm.simulations.errors import ScenarioError

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
