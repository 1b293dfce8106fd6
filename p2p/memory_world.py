"""The space between in-memory peers: links with seeded delays, cuts, crashes, provider records, and a trace of it all.

A cut link holds what is sent and delivers it after `heal`, as TCP does; only a disconnect loses bytes. One task carries
every message of the world, ordered by (time of arrival, order of sending); times of arrival lie on a grid, so that in a
large network what arrives together costs one turn of the scheduler.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections.abc import Callable
from typing import Final, Protocol

import trio

from nsllm.ids import PeerId
from nsllm.p2p.errors import UnreachableError

PROVIDER_LIFE_S: Final = 24 * 3600.0
"""As in Kademlia."""

TICKS_PER_S: Final = 200
"""Grid of times of arrival."""

TraceEvent = tuple[int, str, str, str, str, int, str]
"""(microseconds, kind, from, to, protocol or topic, size in bytes, first digest bytes in hex)."""


Parcel = tuple[float, int, PeerId, "Inhabitant", Callable[[], None]]
"""(time of arrival, number, sender, receiver, what happens there): something under way, in order of delivery."""


class Inhabitant(Protocol):
    """A running network, as the world sees it."""

    @property
    def peer_id(self) -> PeerId:
        """Its identity."""
        ...

    def connected(self) -> tuple[PeerId, ...]:
        """Its live connections."""
        ...

    def crash(self) -> None:
        """Stop at once."""
        ...


class MemoryWorld:
    """The space between in-memory peers."""

    def __init__(
        self,
        rng: random.Random,
        *,
        latency_s: tuple[float, float] = (0.005, 0.03),
        gossip_loss: float = 0.0,
        on_event: Callable[[TraceEvent], None] | None = None,
    ) -> None:
        """Empty space.

        Args:
            rng: source of every delay and loss.
            latency_s: bounds of the uniform one-way delay of a message, in seconds.
            gossip_loss: chance that an announcement misses a receiver.
            on_event: told of every message when it arrives or is lost, for a simulation's digest.
        """
        self._rng = rng
        self._latency_s = latency_s
        self._gossip_loss = gossip_loss
        self._on_event = on_event
        self._networks: dict[PeerId, Inhabitant] = {}
        self._addresses: dict[str, PeerId] = {}
        self._cuts: dict[tuple[PeerId, PeerId], None] = {}
        self._held: dict[tuple[PeerId, PeerId], list[Callable[[], None]]] = {}
        self._last_due_s: dict[tuple[PeerId, PeerId], float] = {}
        self._providers: dict[bytes, dict[PeerId, float]] = {}
        self._number = 0
        self._ports = 0
        self._under_way: list[Parcel] = []
        self._sooner = trio.Event()
        """Set when something arrives before all that was under way."""
        self._carrying = False
        self._reach: dict[PeerId, dict[PeerId, int]] = {}
        """What `reachable` found since the last change of connections or cuts."""

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Stop everything between two peers, both ways, until `heal`."""
        self._cuts |= {(one, other): None, (other, one): None}
        self.changed()

    def heal(self, one: PeerId | None = None, other: PeerId | None = None) -> None:
        """Undo the cut between two peers, all cuts of one peer, or (no arguments) all."""
        wanted = {peer for peer in (one, other) if peer is not None}
        self.changed()
        for link in [link for link in self._cuts if wanted <= set(link)]:
            del self._cuts[link]
            for action in self._held.pop(link, []):
                self.post(*link, action)

    def isolate(self, peer: PeerId) -> None:
        """Cut a peer off from every other that is there now, as a frozen process or a pulled cable would."""
        for other in sorted(self._networks):
            if other != peer:
                self.cut(peer, other)

    def kill(self, peer: PeerId) -> None:
        """Crash a peer: its connections break, what is under way to it is lost, its network object is dead for good.

        Whoever owns the peer's tasks cancels them; a new `MemoryNetwork` with the same id is the restarted peer.
        """
        network = self._networks.get(peer)
        if network is not None:
            network.crash()

    def is_cut(self, source: PeerId, target: PeerId) -> bool:
        """Whether messages from `source` to `target` are held."""
        return (source, target) in self._cuts

    def post(self, source: PeerId, target: PeerId, action: Callable[[], None]) -> None:
        """Run `action` at `target` after the link's delay; held while the link is cut, lost if the target is dead."""
        if self._cuts and self.is_cut(source, target):
            self._held.setdefault((source, target), []).append(action)
            return
        network = self._networks.get(target)
        if network is None:
            return
        link = (source, target)
        arrives_s = math.ceil((trio.current_time() + self.delay_s()) * TICKS_PER_S) / TICKS_PER_S
        due_s = self._last_due_s[link] = max(arrives_s, self._last_due_s.get(link, 0.0))
        self._number += 1
        if not self._under_way or due_s < self._under_way[0][0]:
            self._sooner.set()
        heapq.heappush(self._under_way, (due_s, self._number, source, network, action))

    def delay_s(self) -> float:
        """One draw of the one-way delay."""
        return self._rng.uniform(*self._latency_s)

    def loses_gossip(self) -> bool:
        """One draw of the loss of an announcement."""
        return self._gossip_loss > 0 and self._rng.random() < self._gossip_loss

    def trace(self, kind: str, source: PeerId, target: PeerId, label: str, data: bytes = b"") -> None:
        """Tell the hook."""
        if self._on_event is not None:
            digest = hashlib.sha256(data).hexdigest()[:16]
            self._on_event((round(trio.current_time() * 1e6), kind, source, target, label, len(data), digest))

    def changed(self) -> None:
        """A connection came or went."""
        self._reach.clear()

    def reachable(self, start: PeerId) -> dict[PeerId, int]:
        """Peers that gossip from `start` can reach over live, uncut connections, ascending, and in how many hops."""
        known = self._reach.get(start)
        if known is not None:
            return known
        hops = {start: 0}
        queue = [start]
        for peer in queue:
            for other in self._networks[peer].connected():
                if other not in hops and other in self._networks and not self.is_cut(peer, other):
                    hops[other] = hops[peer] + 1
                    queue.append(other)
        found = self._reach[start] = dict(sorted(hops.items()))
        return found

    def inhabitant(self, peer: PeerId) -> Inhabitant | None:
        """The running network of a peer."""
        return self._networks.get(peer)

    def listener(self, address: str) -> PeerId | None:
        """Who listens at an address (with or without `/p2p/…`)."""
        peer = self._addresses.get(address.partition("/p2p/")[0])
        return peer if peer in self._networks else None

    def new_address(self) -> str:
        """A port that nobody had before."""
        self._ports += 1
        return f"/memory/{self._ports}"

    def register(self, network: Inhabitant, address: str) -> None:
        """Called when a network starts.

        Raises:
            UnreachableError: address or peer id in use.
        """
        if self.listener(address) is not None or network.peer_id in self._networks:
            raise UnreachableError(f"{address} or {network.peer_id} is in use")
        self._networks[network.peer_id] = network
        self._addresses[address] = network.peer_id
        self.changed()
        if not self._carrying:
            self._carrying = True
            trio.lowlevel.spawn_system_task(self._carry)

    def unregister(self, network: Inhabitant) -> None:
        """Called when a network stops; what was held for or from it is lost."""
        if self._networks.get(network.peer_id) is network:
            del self._networks[network.peer_id]
            self.changed()
            for link in [link for link in self._held if network.peer_id in link]:
                del self._held[link]

    def add_provider(self, key: bytes, peer: PeerId) -> None:
        """Record that `peer` holds `key`."""
        self._providers.setdefault(key, {})[peer] = trio.current_time() + PROVIDER_LIFE_S

    def providers(self, key: bytes) -> tuple[PeerId, ...]:
        """Peers that announced `key` within the life of a record."""
        now_s = trio.current_time()
        return tuple(sorted(peer for peer, until_s in self._providers.get(key, {}).items() if until_s > now_s))

    async def _carry(self) -> None:
        """Deliver what is under way, each at its time, as long as the run lasts."""
        while True:
            now_s = trio.current_time()
            while self._under_way and self._under_way[0][0] <= now_s:
                _, _, source, network, action = heapq.heappop(self._under_way)
                target = network.peer_id
                if self._networks.get(target) is not network:
                    continue  # it died meanwhile
                if self._cuts and self.is_cut(source, target):
                    self.post(source, target, action)
                else:
                    action()
            self._sooner = trio.Event()
            with trio.move_on_at(self._under_way[0][0] if self._under_way else math.inf):
                await self._sooner.wait()
