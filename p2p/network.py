"""The Network port: all that a peer asks of the world between peers.

Two implementations: `nsllm.p2p.libp2p_network` (TCP, noise, yamux, Kademlia, gossipsub) and `nsllm.p2p.memory` (one
process, virtual time, seeded delays and faults). Protocols are written against this port only.

Rules: everything here is trio; every await on a peer gets its deadline from the caller (`trio.fail_after`); a handler
that raises costs its stream, never the host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from nsllm.ids import PeerId
from nsllm.p2p.traffic import Traffic

MAX_GOSSIP_BYTES: Final = 16 * 1024
"""Announcements are small: whatever is larger travels on a direct stream."""
MAX_PROVIDER_KEY_BYTES: Final = 64
"""The library drops keys above 128 bytes silently; ours travel as text, which doubles them."""

StreamHandler = Callable[["Stream"], Awaitable[None]]
"""Serves one inbound stream; the stream is closed when it returns and reset when it raises."""


class Stream(Protocol):
    """A duplex byte stream to one peer on one protocol. Use `nsllm.p2p.framing` on top of it."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by the transport's handshake."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            StreamClosedError: the other end, or the connection, is gone.
        """
        ...

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """At least one byte, or `b""` at the end of the stream."""
        ...

    async def aclose(self) -> None:
        """Close both directions; safe to call twice."""
        ...

    async def reset(self) -> None:
        """Abort: the other end sees the stream end at once."""
        ...


class Network(Protocol):
    """One peer's hold on the network."""

    @property
    def peer_id(self) -> PeerId:
        """Our own libp2p identity."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What was sent and heard so far."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that others can dial, each ending in `/p2p/<our id>`; empty before `run` is ready."""
        ...

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve `protocol` (such as `/nsllm/sync/1`); call before `run`."""
        ...

    def run(self) -> AbstractAsyncContextManager[None]:
        """Listen and serve inside this context; leaving it closes every connection and the port."""
        ...

    async def connect(self, address: str) -> PeerId:
        """Dial a multiaddr ending in `/p2p/<id>`; a no-op when connected already.

        Raises:
            UnreachableError: refused, wrong identity, or cut off. Never cached: a later call dials again.
        """
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Drop the connection, if there is one."""
        ...

    def connected(self) -> tuple[PeerId, ...]:
        """Peers with a live connection, in ascending order."""
        ...

    def address_of(self, peer: PeerId) -> str | None:
        """A dialable multiaddr that `peer` was reached at or identified with."""
        ...

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """Open a stream to a connected peer (dialling a known address, or one that the DHT knows, if needed).

        Raises:
            UnreachableError: no connection can be had.
            ProtocolRefusedError: the peer does not serve `protocol`.
        """
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip a small announcement (at most `MAX_GOSSIP_BYTES`); delivery is best effort."""
        ...

    def subscribe(self, topic: str) -> AsyncIterator[tuple[PeerId, bytes]]:
        """Announcements of others on `topic`: (origin, data). Bounded queue, oldest dropped. Call before `run`."""
        ...

    async def provide(self, key: bytes) -> None:
        """Announce in the DHT that we hold `key` (at most 64 bytes)."""
        ...

    async def find_providers(self, key: bytes, limit: int = 8) -> tuple[PeerId, ...]:
        """Peers that announced `key`, ascending order, possibly empty; their addresses become known to `open`."""
        ...
