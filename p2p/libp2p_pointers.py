"""Kademlia for pointers: provider records only, announced at the library's pace, looked up with one cached walk."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import trio
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.utils.varint import encode_varint_prefixed

from nsllm.ids import PeerId
from nsllm.p2p.libp2p_stream import STREAM_ERRORS
from nsllm.p2p.rates import SlidingWindow

log = logging.getLogger(__name__)

K: Final = 20
"""Kademlia's replication, fixed in the library: with fewer peers in the table, all of them are the closest."""
ALPHA: Final = 3
"""Peers that are asked who announced a key: the closest."""
TOLD: Final = 8
"""Peers that an announcement goes to: the closest, so that those `ALPHA` are among them although some left since. It is
repeated every ten minutes and to whoever joins; Kademlia's usual 20 are for a day without."""
GATHER_S: Final = 2.0
"""Announcements wait so long for others: those to one peer go on one stream, which costs more than they do."""
RECEIVE_PER_WINDOW: Final = 100
"""Announcements that we take from one peer in ten seconds. The library's own bound, 10, drops the rest silently."""
SEND_PER_WINDOW: Final = 60
WINDOW_S: Final = 10.5
"""A little longer than the receivers' ten seconds."""
REANNOUNCE_S: Final = 600.0
CACHE_S: Final = 10.0
MAX_CACHED_KEYS: Final = 1024
QUERY_S: Final = 3.0
IDENTIFY_S: Final = 10.0
ADDRESS_LIFE_S: Final = 3600


class Pointers:
    """Who holds what, over Kademlia."""

    def __init__(self, host: Any, *, local: bool) -> None:
        """Registers the Kademlia handler at `host`; `service` is to be run beside it."""
        self._host = host
        self.service: Any = KadDHT(
            host,
            DHTMode.SERVER,
            strict_validation=True,
            enable_values=False,
            # All peers of a local network share one subnet.
            max_peers_per_subnet=0 if local else None,
        )
        self.service._provider_rate_max = RECEIVE_PER_WINDOW  # noqa: SLF001 - the library offers no setting
        self._own: OrderedDict[bytes, None] = OrderedDict()
        self._due: OrderedDict[bytes, None] = OrderedDict()
        self._came = trio.Event()
        self._cache: OrderedDict[bytes, tuple[float, tuple[PeerId, ...]]] = OrderedDict()
        self._walks: dict[bytes, trio.Event] = {}

    def provide(self, key: bytes) -> None:
        """Queue an announcement; repeated for peers that join later, and every ten minutes."""
        self._own[key] = None
        self._due[key] = None
        self._came.set()

    async def peer_identified(self, peer: PeerId) -> None:
        """Take a connected peer into the routing table once identify has told what it serves, and tell it our keys."""
        peer_id = ID.from_string(peer)
        with trio.move_on_after(IDENTIFY_S):
            while peer_id not in self._host._identified_peers:  # noqa: SLF001 - the library offers no event
                if peer_id not in self._host.get_connected_peers():
                    return
                await trio.sleep(0.02)
        try:
            added = await self.service.add_peer(peer_id)
        except STREAM_ERRORS as error:
            log.info("routing_table_failed peer=%s error=%s: %s", peer, type(error).__name__, error)
            return
        if added:
            log.debug("routing_table peer=%s size=%s", peer, self.service.get_routing_table_size())
            self._cache.clear()
            for key in self._own:
                self._due[key] = None
            self._came.set()

    async def announce(self) -> None:
        """Send queued announcements, many at once but no faster than receivers take them; until cancelled."""
        window = SlidingWindow(SEND_PER_WINDOW, WINDOW_S)
        while True:
            while not self._due:
                self._came = trio.Event()
                with trio.move_on_after(REANNOUNCE_S) as scope:
                    await self._came.wait()
                if scope.cancelled_caught:
                    self._due.update(self._own)
            await trio.sleep(max(GATHER_S, window.wait_s()))
            keys = [self._due.popitem(last=False)[0] for _ in range(min(window.room(), len(self._due)))]
            window.take(len(keys))
            await self._announce(keys)

    async def find(self, key: bytes) -> tuple[PeerId, ...]:
        """Peers that announced `key`, ascending; remembered for `CACHE_S` if there are any."""
        while True:
            found_s, peers = self._cache.get(key, (float("-inf"), ()))
            if trio.current_time() - found_s < CACHE_S:
                await trio.lowlevel.checkpoint()
                return peers
            walking = self._walks.get(key)
            if walking is None:
                break
            await walking.wait()
        self._walks[key] = done = trio.Event()
        try:
            peers = await self._walk(key)
        finally:
            del self._walks[key]
            done.set()
        if peers:
            self._cache[key] = (trio.current_time(), peers)
            self._cache.move_to_end(key)
            if len(self._cache) > MAX_CACHED_KEYS:
                self._cache.popitem(last=False)
        return peers

    async def locate(self, peer: PeerId) -> str | None:
        """A multiaddr at which the network says that `peer` listens."""
        peer_id = ID.from_string(peer)
        try:
            with trio.move_on_after(QUERY_S * 2):
                await self.service.peer_routing.find_closest_peers_network(peer_id.to_bytes())
            known = self._host.get_peerstore().addrs(peer_id)
        except (*STREAM_ERRORS, PeerStoreError) as error:
            log.info("locate_failed peer=%s error=%s", peer, error)
            return None
        return next((f"{str(base).partition('/p2p/')[0]}/p2p/{peer}" for base in known), None)

    async def _announce(self, keys: Sequence[bytes]) -> None:
        """Tell the peers closest to each key."""
        told: dict[Any, list[bytes]] = {}
        for key in keys:
            for peer in (await self._closest(key))[:TOLD]:
                told.setdefault(peer, []).append(key)
        async with trio.open_nursery() as nursery:
            for peer, its in told.items():
                nursery.start_soon(self._tell, peer, its)

    async def _tell(self, peer: Any, keys: Sequence[bytes]) -> None:
        """Announcements on one stream. The library opens one for each, and signs in it what noise has proved."""
        addresses = [address.to_bytes() for address in self._host.get_addrs()]
        parts: list[bytes] = []
        for key in keys:
            message = Message(type=Message.MessageType.ADD_PROVIDER, key=key)
            message.providerPeers.add(id=self._host.get_id().to_bytes(), addrs=addresses)
            parts.append(encode_varint_prefixed(message.SerializeToString()))
        try:
            with trio.move_on_after(QUERY_S):
                stream = await self._host.new_stream(peer, [PROTOCOL_ID])
                try:
                    await stream.write(b"".join(parts))
                finally:
                    await stream.close()
        except STREAM_ERRORS as error:
            log.info("pointers_untold peer=%s error=%s: %s", peer, type(error).__name__, error)

    async def _walk(self, key: bytes) -> tuple[PeerId, ...]:
        """Ask the closest peers. The library's own look-up stops at whatever the local store happens to hold."""
        store = self.service.provider_store
        found: dict[str, None] = {}

        def note(infos: list[Any]) -> None:
            for info in infos:
                found[str(info.peer_id)] = None
                if info.addrs and info.peer_id != self._host.get_id():
                    self._host.get_peerstore().add_addrs(info.peer_id, info.addrs, ADDRESS_LIFE_S)

        async def ask(peer: Any) -> None:
            with trio.move_on_after(QUERY_S):
                note((await store._get_providers_from_peer_with_closers(peer, key))[0])  # noqa: SLF001

        note(store.get_providers(key))

        async with trio.open_nursery() as nursery:
            for peer in (await self._closest(key))[:ALPHA]:
                nursery.start_soon(ask, peer)
        return tuple(PeerId(peer) for peer in sorted(found))

    async def _closest(self, key: bytes) -> list[Any]:
        """The peers closest to `key`: by walking, unless the table is so small that it holds them all."""
        table = self.service.routing_table
        if table.size() < K:
            return list(table.find_local_closest_peers(key, K))
        try:
            with trio.move_on_after(QUERY_S * 2):
                return list(await self.service.peer_routing.find_closest_peers_network(key))
        except STREAM_ERRORS as error:
            log.info("walk_failed error=%s", error)
        return list(table.find_local_closest_peers(key, K))
