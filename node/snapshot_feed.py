"""Leaping: a peer that is far behind takes the ledger's state from others, instead of every block.

    offer -> certificates checked -> chunks, each checked -> installed in one transaction -> blocks as usual

Whoever offers or sends what is not certified is dropped, and the next one is asked for the same.
"""

from __future__ import annotations

import logging
from typing import Final

from nsllm.errors import NsllmError, OwnFault, PeerFault
from nsllm.governance.snapshot import Proved
from nsllm.governance.snapshots import Snapshots
from nsllm.ids import Height, PeerId
from nsllm.node.context import PeerContext
from nsllm.node.links import BlockFeed
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.snapshot import MAX_AT_ONCE, fetch_chunks, fetch_offer, fetch_retractions

log = logging.getLogger(__name__)

OFFERS_ASKED: Final = 3
"""Peers that are asked for an offer before we go on with blocks."""
MAX_SNAPSHOT_BYTES: Final = 1 << 32


class SnapshotFeed:
    """`nsllm.consensus.ports.SnapshotSource` over the snapshot protocol.

    Args:
        context: told of leaps.
        network: to other peers.
        feed: ranks those to ask, and knows who lied and which blocks nobody has any more.
        snapshots: the ledger's.
    """

    def __init__(self, context: PeerContext, network: Network, feed: BlockFeed, snapshots: Snapshots) -> None:
        self._context = context
        self._network = network
        self._feed = feed
        self._snapshots = snapshots

    async def leap(self, tip: Height, claimed: Height) -> bool:
        """See the port. A ledger that keeps all leaps only where nobody has its blocks any more."""
        far = claimed - tip > self._snapshots.every and not self._snapshots.keeps_all
        if not far and not self._feed.is_pruned(Height(tip + 1)):
            return False
        for peer in self._feed.ranked()[:OFFERS_ASKED]:
            try:
                proved = await self._offered(peer, Height(tip + (self._snapshots.every // 2 if far else 0)))
                if proved is not None and await self._take(peer, proved):
                    return True
            except OwnFault:
                raise
            except PeerFault as error:
                self._drop(peer, error)
            except NsllmError as error:
                log.info("snapshot_failed peer=%s error=%s", peer, error)
        return False

    async def _offered(self, peer: PeerId, above: Height) -> Proved | None:
        """What the peer offers, if it holds and brings us above a height."""
        found = await fetch_offer(self._network, peer, self._snapshots.epoch)
        if found is None or found[0].manifest.height <= above:
            return None
        proved = self._snapshots.check(*found)
        if proved.offer.manifest.size_bytes > MAX_SNAPSHOT_BYTES:
            log.error("snapshot_too_large height=%d bytes=%d", *_measures(proved))
            return None
        return proved

    async def _take(self, first: PeerId, proved: Proved) -> bool:
        """Take in and install; from whoever offered it, then from the others."""
        manifest = proved.offer.manifest
        log.info("snapshot_begun peer=%s height=%d bytes=%d", first, *_measures(proved))
        await self._snapshots.begin()
        have = 0
        for peer in (first, *(peer for peer in self._feed.ranked() if peer != first)):
            try:
                while have < len(manifest):
                    count = min(MAX_AT_ONCE, len(manifest) - have)
                    for data in await fetch_chunks(self._network, peer, proved.digest, have, count):
                        await self._snapshots.put(proved, have, data)
                        have += 1
                retractions = await fetch_retractions(self._network, peer, self._snapshots.known_retractions())
                await self._snapshots.install(proved, retractions)
            except OwnFault:
                raise
            except PeerFault as error:
                self._drop(peer, error)
            except NsllmError as error:
                log.info("snapshot_interrupted peer=%s chunks=%d error=%s", peer, have, error)
            else:
                log.info("snapshot_installed height=%d bytes=%d", *_measures(proved))
                height, size_bytes = _measures(proved)
                self._context.events.emit("snapshot_installed", height=height, bytes=size_bytes)
                return True
        return False

    def _drop(self, peer: PeerId, error: PeerFault) -> None:
        log.warning("snapshot_peer_dropped peer=%s code=%s error=%s", peer, error.code, error)
        self._context.events.emit("snapshot_refused", peer=peer, code=error.code)
        self._feed.drop(peer)


def _measures(proved: Proved) -> tuple[Height, int]:
    manifest = proved.offer.manifest
    return manifest.height, manifest.size_bytes
