"""The Network port over libp2p: TCP + noise + yamux, Kademlia for pointers, gossipsub for announcements."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import multiaddr
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.tools.anyio_service import background_trio_service

from nsllm.ids import PeerId
from nsllm.p2p.errors import ProtocolRefusedError, StreamClosedError, UnreachableError
from nsllm.p2p.guard import CLEANUP_S, StreamGuard, StreamLimits
from nsllm.p2p.identity import PeerKey
from nsllm.p2p.libp2p_gossip import Gossip
from nsllm.p2p.libp2p_host import dialable, is_taken, make_host, parse
from nsllm.p2p.libp2p_pointers import Pointers
from nsllm.p2p.libp2p_stream import STREAM_ERRORS, Libp2pStream
from nsllm.p2p.network import MAX_GOSSIP_BYTES, MAX_PROVIDER_KEY_BYTES, Stream, StreamHandler
from nsllm.p2p.topics import TopicQueue
from nsllm.p2p.traffic import Traffic

log = logging.getLogger(__name__)

ADDRESS_LIFE_S = 24 * 3600


class Libp2pNetwork:
    """One libp2p host; implements `nsllm.p2p.network.Network`."""

    def __init__(
        self,
        *,
        secret: bytes,
        listen: Sequence[str],
        local: bool,
        announce: Sequence[str] = (),
        limits: StreamLimits | None = None,
    ) -> None:
        """A host that is not running yet.

        Args:
            secret: 32 bytes of the Ed25519 identity.
            listen: multiaddrs such as `/ip4/127.0.0.1/tcp/4001`; port 0 takes a free one.
            local: private address ranges may be dialled.
            announce: multiaddrs (without `/p2p/…`) that others are told instead of those listened on, as behind NAT.
            limits: bounds on inbound streams of our protocols.
        """
        self._secret = secret
        self._peer_id = PeerKey(secret).peer_id
        self._listen = tuple(listen)
        self._local = local
        self._announce = tuple(announce)
        self._guard = StreamGuard(limits or StreamLimits())
        self._handlers: dict[str, StreamHandler] = {}
        self._topics: dict[str, TopicQueue] = {}
        self._traffic = Traffic()
        self._reached: dict[PeerId, str] = {}
        self._host: Any = None
        self._nursery: trio.Nursery | None = None
        self._pointers: Pointers | None = None
        self._gossip: Gossip | None = None
        self._addresses: tuple[str, ...] = ()

    @property
    def peer_id(self) -> PeerId:
        """Our own identity."""
        return self._peer_id

    @property
    def traffic(self) -> Traffic:
        """See `Network.traffic`."""
        return self._traffic

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that others can dial, once running."""
        return self._addresses

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve `protocol`."""
        self._handlers[protocol] = handler

    def run(self) -> AbstractAsyncContextManager[None]:
        """Listen and serve inside this context.

        Raises:
            UnreachableError: an address cannot be listened on, such as a busy port.
        """
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                async with self._services(nursery) as tasks:
                    try:
                        failure = await self._start_listening()
                        if failure is None:
                            yield
                    except Exception as error:  # noqa: BLE001 - raised below, outside of all the nurseries in between
                        failure = error
                    finally:
                        self._addresses = ()
                        tasks.cancel_scope.cancel()
            finally:
                # Only now: what is still awaited above would turn an error of the block into a cancellation.
                self._nursery = None
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _services(self, nursery: trio.Nursery) -> AsyncIterator[trio.Nursery]:
        """Host, gossip and Kademlia, running but not listening: whoever connects later finds everything in place."""
        self._host = host = make_host(self._secret, local=self._local, nursery=nursery)
        swarm = host.get_network()
        self._pointers = pointers = Pointers(host, local=self._local)
        self._gossip = gossip = Gossip(host, self._topics, self._traffic)
        swarm.register_notifee(_Notifee(self))
        for protocol, handler in self._handlers.items():
            host.set_stream_handler(protocol, self._served(protocol, handler))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(background_trio_service(swarm))
            stack.push_async_callback(_close, host)
            await gossip.start(stack)
            await stack.enter_async_context(background_trio_service(pointers.service))
            async with trio.open_nursery() as tasks:
                await gossip.carry(tasks)
                tasks.start_soon(pointers.announce)
                yield tasks

    async def connect(self, address: str) -> PeerId:
        """See `Network.connect`."""
        host = self._running()
        try:
            base, peer = parse(address)
            peer_id = ID.from_string(peer)
        except ValueError as error:
            raise UnreachableError(f"{address!r}: {error}") from None
        if peer == self._peer_id or peer_id in host.get_connected_peers():
            await trio.lowlevel.checkpoint()
            return PeerId(peer)
        swarm = host.get_network()
        # The library remembers a failed dial for a minute, and of several TCP addresses tries the oldest only.
        swarm._negative_peer_cache.evict(peer)  # noqa: SLF001 - the library offers no other way
        try:
            host.get_peerstore().clear_addrs(peer_id)
            await host.connect(PeerInfo(peer_id, [base]))
        except (*STREAM_ERRORS, StreamFailure) as error:
            raise UnreachableError(f"{address}: {_cause(error)}") from None
        if peer_id not in host.get_connected_peers():
            raise UnreachableError(f"{address}: the connection did not last")
        host.get_peerstore().add_addrs(peer_id, [base], ADDRESS_LIFE_S)
        self._reached[PeerId(peer)] = address
        return PeerId(peer)

    async def disconnect(self, peer: PeerId) -> None:
        """See `Network.disconnect`."""
        if self._host is not None:
            await self._host.disconnect(ID.from_string(peer))

    def connected(self) -> tuple[PeerId, ...]:
        """Peers with a live connection, ascending."""
        if self._nursery is None:
            return ()
        return tuple(sorted(PeerId(str(peer)) for peer in self._host.get_connected_peers()))

    def address_of(self, peer: PeerId) -> str | None:
        """Where we reached the peer, or where identify or Kademlia say that it listens."""
        if peer in self._reached:
            return self._reached[peer]
        if self._host is None:
            return None
        try:
            known = self._host.get_peerstore().addrs(ID.from_string(peer))
        except PeerStoreError:
            return None
        return next((f"{str(base).partition('/p2p/')[0]}/p2p/{peer}" for base in known), None)

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """See `Network.open`."""
        host = self._running()
        peer_id = ID.from_string(peer)
        if peer_id not in host.get_connected_peers():
            await self._reach(peer)
        try:
            inner = await host.new_stream(peer_id, [protocol])
        except StreamFailure as error:
            if "not supported" in str(error.__cause__):
                raise ProtocolRefusedError(f"{peer} does not serve {protocol}") from None
            raise UnreachableError(f"{peer}: {_cause(error)}") from None
        except STREAM_ERRORS as error:
            raise UnreachableError(f"{peer}: {_cause(error)}") from None
        if self._nursery is None:
            raise StreamClosedError("the network is closing")
        tally = self._traffic.of(protocol)
        tally.streams += 1
        return Libp2pStream(inner, self._nursery, tally)

    async def _reach(self, peer: PeerId) -> None:
        """Dial a peer where it was last; if it is not there, where Kademlia says that it is."""
        address = self.address_of(peer)
        if address is not None:
            try:
                await self.connect(address)
            except UnreachableError:
                self._reached.pop(peer, None)
            else:
                return
        found = await self._pointers.locate(peer) if self._pointers is not None else None
        if found is None or found == address:
            raise UnreachableError(f"no address of {peer} is known at which it answers")
        await self.connect(found)

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network.publish`; queued, and sent no faster than gossip carries."""
        self._running()
        if len(data) > MAX_GOSSIP_BYTES:
            raise ValueError(f"announcement of {len(data)} bytes, the limit is {MAX_GOSSIP_BYTES}")
        if self._gossip is not None:
            self._gossip.publish(topic, data)
            self._traffic.published += 1
        await trio.lowlevel.checkpoint()

    def subscribe(self, topic: str) -> AsyncIterator[tuple[PeerId, bytes]]:
        """See `Network.subscribe`."""
        return self._topics.setdefault(topic, TopicQueue())

    async def provide(self, key: bytes) -> None:
        """See `Network.provide`; queued, and announced no faster than receivers take."""
        self._running()
        _check_key(key)
        if self._pointers is not None:
            self._pointers.provide(key)
        await trio.lowlevel.checkpoint()

    async def find_providers(self, key: bytes, limit: int = 8) -> tuple[PeerId, ...]:
        """See `Network.find_providers`; what was found is remembered for ten seconds."""
        self._running()
        _check_key(key)
        if self._pointers is None:
            return ()
        found = await self._pointers.find(key)
        return tuple(peer for peer in found if peer != self._peer_id)[:limit]

    def peer_connected(self, peer: PeerId) -> None:
        """A connection came up, from either side."""
        if self._nursery is not None and self._pointers is not None:
            self._nursery.start_soon(self._pointers.peer_identified, peer)

    async def _start_listening(self) -> UnreachableError | None:
        """Bind every address and tell peers of them; the error of the first that cannot be bound."""
        swarm = self._host.get_network()
        for text in self._listen:
            if is_taken(text) or not await swarm.listen(multiaddr.Multiaddr(text)):
                return UnreachableError(f"cannot listen on {text}", hint="is the port in use?")
        bound = [str(address).partition("/p2p/")[0] for address in self._host.get_transport_addrs()]
        told = self._announce or dialable(bound, local=self._local)
        self._host._addrs_factory = lambda _: [multiaddr.Multiaddr(text) for text in told]  # noqa: SLF001 - known now
        self._addresses = tuple(f"{text}/p2p/{self._peer_id}" for text in told)
        log.info("listening addresses=%s", ",".join(self._addresses))
        return None

    def _served(self, protocol: str, handler: StreamHandler) -> Any:
        tally = self._traffic.of(protocol)

        async def serve(inner: Any) -> None:
            if self._nursery is not None:
                await self._guard.serve(handler, Libp2pStream(inner, self._nursery, tally), protocol)

        return serve

    def _running(self) -> Any:
        if self._nursery is None:
            raise StreamClosedError("the network is not running")
        return self._host


class _Notifee:
    """What libp2p calls when connections come and go."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self._network = network

    async def connected(self, _: Any, connection: Any) -> None:
        self._network.peer_connected(PeerId(str(connection.muxed_conn.peer_id)))

    async def disconnected(self, _: Any, connection: Any) -> None:
        pass

    async def opened_stream(self, _: Any, stream: Any) -> None:
        pass

    async def closed_stream(self, _: Any, stream: Any) -> None:
        pass

    async def listen(self, _: Any, address: Any) -> None:
        pass

    async def listen_close(self, _: Any, address: Any) -> None:
        pass


async def _close(host: Any) -> None:
    """Close connections and ports: leaving the library's service alone may leave the port open."""
    with trio.move_on_after(CLEANUP_S) as scope:
        scope.shield = True
        await host.close()


def _cause(error: BaseException) -> str:
    """The innermost reason: the library wraps it several times."""
    while True:
        inner = error.__cause__ or getattr(error, "errors", None) or getattr(error, "exceptions", None)
        if isinstance(inner, (list, tuple)):
            inner = inner[0] if inner else None
        if not isinstance(inner, BaseException):
            return f"{type(error).__name__}: {error}"
        error = inner


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_PROVIDER_KEY_BYTES:
        raise ValueError(f"a provider key has 1 to {MAX_PROVIDER_KEY_BYTES} bytes; got {len(key)}")
