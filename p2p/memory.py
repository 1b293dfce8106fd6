"""The Network port inside one process, on trio's clock: seeded delays, partitions, crashes. No libp2p inside.

Every message travels through its receiver's mailbox, ordered by (time of arrival, order of sending); arrival times
grow strictly on each directed link. Under trio's `MockClock` and a deterministic scheduler the same seed gives the
same trace.

A cut link holds what is sent and delivers it after `heal`, as TCP does; only a disconnect loses bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from nsllm.ids import PeerId
from nsllm.p2p.errors import ProtocolRefusedError, StreamClosedError, UnreachableError
from nsllm.p2p.guard import StreamGuard, StreamLimits
from nsllm.p2p.memory_stream import Connection, MemoryStream, Wire
from nsllm.p2p.network import MAX_GOSSIP_BYTES, MAX_PROVIDER_KEY_BYTES, Stream, StreamHandler
from nsllm.p2p.topics import TopicQueue

CONNECT_TIMEOUT_S: Final = 10.0
"""How long a dial into a cut link waits before it gives up, as a TCP dial would."""
PROVIDER_LIFE_S: Final = 24 * 3600.0
"""As in Kademlia."""

TraceEvent = tuple[int, str, str, str, str, int, str]
"""(microseconds, kind, from, to, protocol or topic, size in bytes, first digest bytes in hex)."""


@dataclass(order=True)
class _Parcel:
    due_s: float
    number: int
    source: PeerId = field(compare=False)
    action: Callable[[], None] = field(compare=False)


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
        self._networks: dict[PeerId, MemoryNetwork] = {}
        self._addresses: dict[str, PeerId] = {}
        self._cuts: dict[tuple[PeerId, PeerId], None] = {}
        self._held: dict[tuple[PeerId, PeerId], list[Callable[[], None]]] = {}
        self._last_due_s: dict[tuple[PeerId, PeerId], float] = {}
        self._providers: dict[bytes, dict[PeerId, float]] = {}
        self._number = 0
        self._ports = 0

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Stop everything between two peers, both ways, until `heal`."""
        self._cuts |= {(one, other): None, (other, one): None}

    def heal(self, one: PeerId | None = None, other: PeerId | None = None) -> None:
        """Undo the cut between two peers, all cuts of one peer, or (no arguments) all."""
        wanted = {peer for peer in (one, other) if peer is not None}
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
        if self.is_cut(source, target):
            self._held.setdefault((source, target), []).append(action)
            return
        network = self._networks.get(target)
        if network is None:
            return
        link = (source, target)
        due_s = max(trio.current_time() + self.delay_s(), self._last_due_s.get(link, 0.0) + 1e-6)
        self._last_due_s[link] = due_s
        self._number += 1
        network.mail(_Parcel(due_s=due_s, number=self._number, source=source, action=action))

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

    def reachable(self, start: PeerId) -> dict[PeerId, int]:
        """Peers that gossip from `start` can reach over live, uncut connections, and in how many hops."""
        hops = {start: 0}
        queue = [start]
        for peer in queue:
            for other in self._networks[peer].connected():
                if other not in hops and other in self._networks and not self.is_cut(peer, other):
                    hops[other] = hops[peer] + 1
                    queue.append(other)
        return hops

    def network(self, peer: PeerId) -> MemoryNetwork | None:
        """The running network of a peer."""
        return self._networks.get(peer)

    def listener(self, address: str) -> MemoryNetwork | None:
        """Who listens at an address (with or without `/p2p/…`)."""
        peer = self._addresses.get(address.partition("/p2p/")[0])
        return self._networks.get(peer) if peer is not None else None

    def new_address(self) -> str:
        """A port that nobody had before."""
        self._ports += 1
        return f"/memory/{self._ports}"

    def register(self, network: MemoryNetwork, address: str) -> None:
        """Called when a network starts.

        Raises:
            UnreachableError: address or peer id in use.
        """
        if self.listener(address) is not None or network.peer_id in self._networks:
            raise UnreachableError(f"{address} or {network.peer_id} is in use")
        self._networks[network.peer_id] = network
        self._addresses[address] = network.peer_id

    def unregister(self, network: MemoryNetwork) -> None:
        """Called when a network stops; what was held for or from it is lost."""
        if self._networks.get(network.peer_id) is network:
            del self._networks[network.peer_id]
            for link in [link for link in self._held if network.peer_id in link]:
                del self._held[link]

    def add_provider(self, key: bytes, peer: PeerId) -> None:
        """Record that `peer` holds `key`."""
        self._providers.setdefault(key, {})[peer] = trio.current_time() + PROVIDER_LIFE_S

    def providers(self, key: bytes) -> tuple[PeerId, ...]:
        """Peers that announced `key` within the life of a record."""
        now_s = trio.current_time()
        return tuple(sorted(peer for peer, until_s in self._providers.get(key, {}).items() if until_s > now_s))


class MemoryNetwork:
    """One peer's hold on a `MemoryWorld`; implements `nsllm.p2p.network.Network`."""

    def __init__(
        self, world: MemoryWorld, peer_id: PeerId, *, address: str | None = None, limits: StreamLimits | None = None
    ) -> None:
        """A network that is not running yet.

        Args:
            world: what it lives in.
            peer_id: any text; unique among running networks of the world.
            address: such as `/memory/7`; None for a fresh one.
            limits: bounds on inbound streams.
        """
        self._world = world
        self._peer_id = peer_id
        self._address = address or world.new_address()
        self._handlers: dict[str, StreamHandler] = {}
        self._topics: dict[str, TopicQueue] = {}
        self._guard = StreamGuard(limits or StreamLimits())
        self._connections: dict[PeerId, Connection] = {}
        self._known: dict[PeerId, str] = {}
        self._mailbox: list[_Parcel] = []
        self._mail_came = trio.Event()
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> PeerId:
        """Our own identity."""
        return self._peer_id

    def addresses(self) -> tuple[str, ...]:
        """Our one address while running."""
        return (f"{self._address}/p2p/{self._peer_id}",) if self._nursery is not None else ()

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve `protocol`."""
        self._handlers[protocol] = handler

    def run(self) -> AbstractAsyncContextManager[None]:
        """Deliver and serve inside this context."""
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        self._world.register(self, self._address)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._deliver_mail)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            self.crash()

    async def connect(self, address: str) -> PeerId:
        """See `Network.connect`."""
        self._running()
        expected = PeerId(address.rpartition("/p2p/")[2])
        if expected in self._connections or expected == self._peer_id:
            await trio.lowlevel.checkpoint()
            return expected
        listener = self._world.listener(address)
        if listener is not None and self._world.is_cut(self._peer_id, listener.peer_id):
            await trio.sleep(CONNECT_TIMEOUT_S)
            raise UnreachableError(f"no answer from {address} within {CONNECT_TIMEOUT_S} s")
        await trio.sleep(self._world.delay_s() + self._world.delay_s())
        listener = self._world.listener(address)
        if listener is None or listener.peer_id != expected or self._world.is_cut(self._peer_id, expected):
            raise UnreachableError(f"nobody listens at {address}" if listener is None else f"another peer at {address}")
        self._running()
        if expected not in self._connections:
            connection = Connection(self._wire(), listener._wire())  # noqa: SLF001 - the other end of the same class
            self._connections[expected] = connection
            listener._connections[self._peer_id] = connection  # noqa: SLF001
            self._world.trace("connect", self._peer_id, expected, "")
        self._known[expected] = address
        listener._known[self._peer_id] = self.addresses()[0]  # noqa: SLF001 - what identify would tell
        return expected

    async def disconnect(self, peer: PeerId) -> None:
        """See `Network.disconnect`."""
        connection = self._connections.pop(peer, None)
        if connection is not None:
            connection.break_end(self._peer_id)
            self._world.trace("disconnect", self._peer_id, peer, "")
            self._world.post(self._peer_id, peer, lambda: self._lost_at(peer, connection))
        await trio.lowlevel.checkpoint()

    def connected(self) -> tuple[PeerId, ...]:
        """Peers with a live connection, ascending."""
        return tuple(sorted(self._connections))

    def address_of(self, peer: PeerId) -> str | None:
        """Where the peer was reached at."""
        return self._known.get(peer)

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """See `Network.open`; costs one round trip."""
        self._running()
        if peer not in self._connections:
            address = self._known.get(peer)
            if address is None:
                raise UnreachableError(f"no address of {peer} is known")
            await self.connect(address)
        connection = self._connections.get(peer)
        if connection is None:
            raise UnreachableError(f"the connection to {peer} broke")
        ours, theirs = connection.open(self._peer_id, protocol)
        answer = trio.Event()
        accepted: list[bool] = []

        def answered(verdict: bool) -> None:
            accepted.append(verdict)
            answer.set()

        def arrived() -> None:
            network = self._world.network(peer)
            verdict = network is not None and network._accept(theirs)  # noqa: SLF001
            self._world.trace("open", self._peer_id, peer, protocol)
            self._world.post(peer, self._peer_id, lambda: answered(verdict))

        self._world.post(self._peer_id, peer, arrived)
        try:
            await ours.wait_broken_or(answer)
        except BaseException:
            await ours.reset()
            raise
        if not accepted:
            raise UnreachableError(f"the connection to {peer} broke while {protocol} was being opened")
        if not accepted[0]:
            raise ProtocolRefusedError(f"{peer} does not serve {protocol}")
        return ours

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network.publish`; floods over live connections."""
        self._running()
        if len(data) > MAX_GOSSIP_BYTES:
            raise ValueError(f"announcement of {len(data)} bytes, the limit is {MAX_GOSSIP_BYTES}")
        await trio.lowlevel.checkpoint()
        for peer in sorted(self._world.reachable(self._peer_id)):
            network = self._world.network(peer)
            if peer == self._peer_id or network is None or topic not in network._topics:  # noqa: SLF001
                continue
            if self._world.loses_gossip():
                self._world.trace("lost", self._peer_id, peer, topic, data)
                continue
            self._world.post(self._peer_id, peer, _Gossip(self._world, self._peer_id, peer, topic, data))

    def subscribe(self, topic: str) -> AsyncIterator[tuple[PeerId, bytes]]:
        """See `Network.subscribe`."""
        return self._topics.setdefault(topic, TopicQueue())

    async def provide(self, key: bytes) -> None:
        """See `Network.provide`."""
        self._running()
        _check_key(key)
        await trio.sleep(self._world.delay_s())
        self._world.add_provider(key, self._peer_id)
        self._world.trace("provide", self._peer_id, self._peer_id, "", key)

    async def find_providers(self, key: bytes, limit: int = 8) -> tuple[PeerId, ...]:
        """See `Network.find_providers`; costs one round trip."""
        self._running()
        _check_key(key)
        await trio.sleep(self._world.delay_s() + self._world.delay_s())
        found = [peer for peer in self._world.providers(key) if peer != self._peer_id]
        for peer in found:
            network = self._world.network(peer)
            if network is not None:
                self._known[peer] = network.addresses()[0]
        return tuple(found[:limit])

    def crash(self) -> None:
        """Stop at once: connections break at both ends, nothing more is delivered. Safe to call twice."""
        if self._nursery is None:
            return
        self._nursery.cancel_scope.cancel()
        self._nursery = None
        for peer, connection in sorted(self._connections.items()):
            connection.break_end(self._peer_id)
            self._world.trace("crash", self._peer_id, peer, "")
            self._world.post(self._peer_id, peer, lambda p=peer, c=connection: self._lost_at(p, c))  # type: ignore[misc]
        self._connections.clear()
        self._mailbox.clear()
        self._world.unregister(self)

    def mail(self, parcel: _Parcel) -> None:
        """Put a parcel into the mailbox."""
        heapq.heappush(self._mailbox, parcel)
        self._mail_came.set()

    def topic(self, name: str) -> TopicQueue | None:
        """The queue of a topic that was subscribed to."""
        return self._topics.get(name)

    async def _deliver_mail(self) -> None:
        while True:
            now_s = trio.current_time()
            while self._mailbox and self._mailbox[0].due_s <= now_s:
                parcel = heapq.heappop(self._mailbox)
                if self._world.is_cut(parcel.source, self._peer_id):
                    self._world.post(parcel.source, self._peer_id, parcel.action)
                else:
                    parcel.action()
            self._mail_came = trio.Event()
            with trio.move_on_at(self._mailbox[0].due_s if self._mailbox else float("inf")):
                await self._mail_came.wait()

    def _wire(self) -> Wire:
        return Wire(peer=self._peer_id, post=self._world.post, trace=self._world.trace)

    def _lost_at(self, peer: PeerId, connection: Connection) -> None:
        connection.break_end(peer)
        network = self._world.network(peer)
        if network is not None and network._connections.get(self._peer_id) is connection:  # noqa: SLF001
            del network._connections[self._peer_id]  # noqa: SLF001

    def _accept(self, stream: MemoryStream) -> bool:
        handler = self._handlers.get(stream.protocol)
        if handler is None or self._nursery is None:
            return False
        self._nursery.start_soon(self._guard.serve, handler, stream, stream.protocol)
        return True

    def _running(self) -> None:
        if self._nursery is None:
            raise StreamClosedError(f"the network of {self._peer_id} is not running")


@dataclass(frozen=True, slots=True)
class _Gossip:
    """An announcement on its way to one receiver."""

    world: MemoryWorld
    origin: PeerId
    target: PeerId
    topic: str
    data: bytes

    def __call__(self) -> None:
        network = self.world.network(self.target)
        queue = network.topic(self.topic) if network is not None else None
        if queue is not None:
            self.world.trace("gossip", self.origin, self.target, self.topic, self.data)
            queue.put(self.origin, self.data)


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_PROVIDER_KEY_BYTES:
        raise ValueError(f"a provider key has 1 to {MAX_PROVIDER_KEY_BYTES} bytes; got {len(key)}")


def fully_connected(networks: Sequence[MemoryNetwork]) -> bool:
    """Whether every one of `networks` is connected to every other; for tests and simulations."""
    everyone = {network.peer_id for network in networks}
    return all(everyone - {network.peer_id} <= set(network.connected()) for network in networks)
