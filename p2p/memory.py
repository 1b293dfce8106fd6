"""The Network port inside one process, on trio's clock: seeded delays, partitions, crashes. No libp2p inside.

The world carries every message (`nsllm.p2p.memory_world`). Under trio's `MockClock` and a deterministic scheduler the
same seed gives the same trace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import trio

from nsllm.ids import PeerId
from nsllm.p2p.errors import ProtocolRefusedError, StreamClosedError, UnreachableError
from nsllm.p2p.guard import StreamGuard, StreamLimits
from nsllm.p2p.memory_stream import Connection, MemoryStream, Wire
from nsllm.p2p.memory_world import MemoryWorld, TraceEvent
from nsllm.p2p.network import MAX_GOSSIP_BYTES, MAX_PROVIDER_KEY_BYTES, Stream, StreamHandler
from nsllm.p2p.topics import TopicQueue
from nsllm.p2p.traffic import Traffic

__all__ = ["MemoryNetwork", "MemoryWorld", "TraceEvent", "fully_connected"]

CONNECT_TIMEOUT_S: Final = 10.0
"""How long a dial into a cut link waits before it gives up, as a TCP dial would."""


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
        self._traffic = Traffic()
        self._guard = StreamGuard(limits or StreamLimits())
        self._connections: dict[PeerId, Connection] = {}
        self._known: dict[PeerId, str] = {}
        self._sorted: tuple[PeerId, ...] | None = ()
        """What `connected` answers; None: to be made anew."""
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> PeerId:
        """Our own identity."""
        return self._peer_id

    @property
    def traffic(self) -> Traffic:
        """See `Network.traffic`."""
        return self._traffic

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
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    yield
                except Exception as error:  # noqa: BLE001 - raised below, outside of our nursery
                    failure = error
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            self.crash()
        if failure is not None:
            raise failure

    async def connect(self, address: str) -> PeerId:
        """See `Network.connect`."""
        self._running()
        expected = PeerId(address.rpartition("/p2p/")[2])
        if expected in self._connections or expected == self._peer_id:
            await trio.lowlevel.checkpoint()
            return expected
        there = self._world.listener(address)
        if there is not None and self._world.is_cut(self._peer_id, there):
            await trio.sleep(CONNECT_TIMEOUT_S)
            raise UnreachableError(f"no answer from {address} within {CONNECT_TIMEOUT_S} s")
        await trio.sleep(self._world.delay_s() + self._world.delay_s())
        self._running()
        there = self._world.listener(address)
        listener = self._neighbour(expected)
        if there != expected or listener is None or self._world.is_cut(self._peer_id, expected):
            raise UnreachableError(f"nobody listens at {address}" if there is None else f"another peer at {address}")
        if expected not in self._connections:
            connection = Connection(self._wire(), listener._wire())  # noqa: SLF001 - the other end of the same class
            self._join(expected, connection)
            listener._join(self._peer_id, connection)  # noqa: SLF001
            self._world.trace("connect", self._peer_id, expected, "")
        self._known[expected] = address
        listener._known[self._peer_id] = self.addresses()[0]  # noqa: SLF001 - what identify would tell
        return expected

    async def disconnect(self, peer: PeerId) -> None:
        """See `Network.disconnect`."""
        connection = self._connections.get(peer)
        if connection is not None:
            self._part(peer)
            connection.break_end(self._peer_id)
            self._world.trace("disconnect", self._peer_id, peer, "")
            self._world.post(self._peer_id, peer, lambda: self._lost_at(peer, connection))
        await trio.lowlevel.checkpoint()

    def connected(self) -> tuple[PeerId, ...]:
        """Peers with a live connection, ascending."""
        if self._sorted is None:
            self._sorted = tuple(sorted(self._connections))
        return self._sorted

    def address_of(self, peer: PeerId) -> str | None:
        """Where the peer was reached at."""
        return self._known.get(peer)

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """See `Network.open`; costs one round trip."""
        self._running()
        if peer not in self._connections:
            await self._reach(peer)
        connection = self._connections.get(peer)
        if connection is None:
            raise UnreachableError(f"the connection to {peer} broke")
        ours, theirs = connection.open(self._peer_id, protocol)
        self._traffic.of(protocol).streams += 1

        def arrived() -> None:
            network = self._neighbour(peer)
            accepted = network is not None and network._accept(theirs)  # noqa: SLF001
            self._world.trace("open", self._peer_id, peer, protocol)
            self._world.post(peer, self._peer_id, lambda: ours.answered(accepted))

        self._world.post(self._peer_id, peer, arrived)
        try:
            accepted = await ours.verdict()
        except BaseException:
            await ours.reset()
            raise
        if accepted is None:
            raise UnreachableError(f"the connection to {peer} broke while {protocol} was being opened")
        if not accepted:
            raise ProtocolRefusedError(f"{peer} does not serve {protocol}")
        return ours

    async def _reach(self, peer: PeerId) -> None:
        """Dial a peer where it was last; if it is not there, where the DHT says that it is."""
        address = self._known.get(peer)
        if address is not None:
            try:
                await self.connect(address)
            except UnreachableError:
                self._known.pop(peer, None)
            else:
                return
        await trio.sleep(self._world.delay_s() + self._world.delay_s())
        network = self._neighbour(peer)
        found = network.addresses() if network is not None else ()
        if not found or found[0] == address:
            raise UnreachableError(f"no address of {peer} is known at which it answers")
        await self.connect(found[0])

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network.publish`; floods over live connections."""
        self._running()
        if len(data) > MAX_GOSSIP_BYTES:
            raise ValueError(f"announcement of {len(data)} bytes, the limit is {MAX_GOSSIP_BYTES}")
        await trio.lowlevel.checkpoint()
        self._traffic.published += 1
        for peer in self._world.reachable(self._peer_id):
            network = self._neighbour(peer)
            if peer == self._peer_id or network is None or topic not in network._topics:  # noqa: SLF001
                continue
            if self._world.loses_gossip():
                self._world.trace("lost", self._peer_id, peer, topic, data)
                continue
            self._world.post(self._peer_id, peer, lambda n=network: n._hear(self._peer_id, topic, data))  # type: ignore[misc]  # noqa: SLF001

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
            network = self._neighbour(peer)
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
        self._sorted = ()
        self._world.unregister(self)

    def _join(self, peer: PeerId, connection: Connection) -> None:
        self._connections[peer] = connection
        self._sorted = None
        self._world.changed()

    def _part(self, peer: PeerId) -> None:
        del self._connections[peer]
        self._sorted = None
        self._world.changed()

    def _wire(self) -> Wire:
        return Wire(peer=self._peer_id, post=self._world.post, trace=self._world.trace, traffic=self._traffic)

    def _lost_at(self, peer: PeerId, connection: Connection) -> None:
        connection.break_end(peer)
        network = self._neighbour(peer)
        if network is not None and network._connections.get(self._peer_id) is connection:  # noqa: SLF001
            network._part(self._peer_id)  # noqa: SLF001

    def _accept(self, stream: MemoryStream) -> bool:
        handler = self._handlers.get(stream.protocol)
        if handler is None or self._nursery is None:
            return False
        self._nursery.start_soon(self._guard.serve, handler, stream, stream.protocol)
        return True

    def _hear(self, origin: PeerId, topic: str, data: bytes) -> None:
        self._world.trace("gossip", origin, self._peer_id, topic, data)
        self._traffic.heard += 1
        self._topics[topic].put(origin, data)

    def _neighbour(self, peer: PeerId) -> MemoryNetwork | None:
        network = self._world.inhabitant(peer)
        return network if isinstance(network, MemoryNetwork) else None

    def _running(self) -> None:
        if self._nursery is None:
            raise StreamClosedError(f"the network of {self._peer_id} is not running")


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_PROVIDER_KEY_BYTES:
        raise ValueError(f"a provider key has 1 to {MAX_PROVIDER_KEY_BYTES} bytes; got {len(key)}")


def fully_connected(networks: Sequence[MemoryNetwork]) -> bool:
    """Whether every one of `networks` is connected to every other; for tests and simulations."""
    everyone = {network.peer_id for network in networks}
    return all(everyone - {network.peer_id} <= set(network.connected()) for network in networks)
