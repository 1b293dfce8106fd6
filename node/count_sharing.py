"""Counts of reuse between peers: what this one observed goes to the members that are connected, and theirs come in.

Only what changed is told, a while after it did: peers that learn nothing say nothing. What was observed in private
questions and in groups is never told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from nsllm.cache_dht.observation_store import ObservationStore
from nsllm.cache_dht.observations import MOST, Tally
from nsllm.consensus.registry import Member
from nsllm.errors import NsllmError
from nsllm.ids import PeerId, hex0x
from nsllm.node.context import PeerContext
from nsllm.p2p.protocols.counts import MAX_ROWS, CountRow
from nsllm.p2p.rates import SlidingWindow

log = logging.getLogger(__name__)

GATHER_S: Final = 30.0
"""What was learned within this time is told together."""
TELL_DEADLINE_S: Final = 10.0
ROWS_A_MEMBER: Final = MOST
"""Counters that one member may tell in `PERIOD_S`; more are refused until then."""
PERIOD_S: Final = 600.0


class CountLinks(Protocol):
    """Other members, over the counts protocol."""

    async def tell_counts(self, peer: PeerId, rows: Sequence[CountRow]) -> None:
        """Return once `peer` has taken them in. Raises `NetworkError`."""
        ...


class CountSharing:
    """Tells what was observed here, and takes in what others observed.

    Args:
        context: of this peer.
        observations: on disk.
        merge: teaches the reuse policy what others observed.
        links: to others.
        members: libp2p identities of the members that are connected now.
    """

    def __init__(
        self,
        *,
        context: PeerContext,
        observations: ObservationStore,
        merge: Callable[[Tally], None],
        links: CountLinks,
        members: Callable[[], Sequence[PeerId]],
    ) -> None:
        self._context = context
        self._observations = observations
        self._merge = merge
        self._links = links
        self._members = members
        self._told: dict[PeerId, int] = {}
        """Up to which change each member has heard, since this peer started."""
        self._heard: dict[bytes, SlidingWindow] = {}
        self._changed = trio.Event()

    def changed(self) -> None:
        """Something was observed that others may hear of."""
        self._changed.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._changed.wait()
            await trio.sleep(GATHER_S)
            self._changed = trio.Event()
            members = self._members()
            self._told = {peer: told for peer, told in self._told.items() if peer in members}
            for peer in members:
                await self._tell(peer)

    async def hear(self, rows: Sequence[CountRow], member: Member) -> str | None:
        """Take in what a member observed: None, or why not."""
        window = self._heard.setdefault(member.address, SlidingWindow(ROWS_A_MEMBER, PERIOD_S))
        if not window.take(len(rows)):
            return f"more than {ROWS_A_MEMBER} counters in {PERIOD_S:g} s"
        tally = Tally()
        for row in rows:
            tally.counter(member.address, row.place)[:] = row.counts
        self._merge(tally)
        counters = [(row.place, row.counts) for row in rows]
        try:
            await self._context.offload.run(lambda: self._observations.keep(member.address, counters, own=False))
        except NsllmError as error:  # they count until the next start
            log.error("counts_not_kept from=%s error=%s", hex0x(member.address), error)
        self._context.events.emit("counts_heard", member=hex0x(member.address), counters=len(rows))
        return None

    async def _tell(self, peer: PeerId) -> None:
        try:
            while True:
                after = self._told.get(peer, 0)
                look = partial(self._observations.since, self._context.address, after, MAX_ROWS)
                rows = await self._context.offload.run(look)
                if not rows:
                    return
                with trio.fail_after(TELL_DEADLINE_S):
                    told = [CountRow(place=place, counts=counts) for place, counts, _ in rows]
                    await self._links.tell_counts(peer, told)
                full = len(rows) == MAX_ROWS and rows[0][2] < rows[-1][2]
                self._told[peer] = rows[-1][2] - full  # a change that was cut is told again
        except (NsllmError, trio.TooSlowError) as error:
            log.info("counts_not_told peer=%s error=%s", peer, error)
