"""Gossip: a block was decided, a card changed.

Small and lossy, repaired by asking; a malformed announcement costs its sender only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.errors import PeerFault
from nsllm.ids import Digest, DigestField, Height, HeightField, NetworkId, PeerId
from nsllm.p2p.card import SignedCard
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.network import MAX_GOSSIP_BYTES, Network
from nsllm.p2p.rates import Rate, RateLimiter

log = logging.getLogger(__name__)

MEMBERS: Final = Rate(per_peer=300, total=6000)
"""Announcements a minute; more from one member are passed over."""


class BlockAnnouncement(Value, frozen=True, kw_only=True, tag="block"):
    """The sender committed a block."""

    height: HeightField
    id: DigestField


class CardAnnouncement(Value, frozen=True, kw_only=True, tag="card"):
    """The sender's card changed."""

    card: SignedCard


class Announcement(Value, frozen=True, kw_only=True):
    """What is gossiped."""

    subject: BlockAnnouncement | CardAnnouncement


OnBlock = Callable[[PeerId, Height, Digest], Awaitable[None]]
OnCard = Callable[[SignedCard], None]


def topic(network: NetworkId) -> str:
    """The one topic of a network."""
    return f"/nsllm/announce/1/{network.hex()[:32]}"


class Announcer:
    """Publishes announcements and hears those of other members. Make it before the network runs."""

    def __init__(self, network: Network, directory: PeerDirectory, *, on_block: OnBlock, on_card: OnCard) -> None:
        self._network = network
        self._directory = directory
        self._topic = topic(directory.network)
        self._heard = network.subscribe(self._topic)
        self._on_block = on_block
        self._on_card = on_card
        self._limiter = RateLimiter(MEMBERS)
        self.faults = 0
        """Announcements that were refused so far."""

    async def block(self, height: Height, block_id: Digest) -> None:
        """Say that we committed a block."""
        await self._publish(BlockAnnouncement(height=height, id=block_id))

    async def card(self, card: SignedCard) -> None:
        """Say that our card changed."""
        await self._publish(CardAnnouncement(card=card))

    async def run(self) -> None:
        """Hear announcements until cancelled."""
        async for origin, data in self._heard:
            try:
                await self._hear(origin, data)
            except PeerFault as error:
                self.faults += 1
                log.info("announcement_refused from=%s error=%s: %s", origin, type(error).__name__, error)

    async def _publish(self, subject: BlockAnnouncement | CardAnnouncement) -> None:
        await self._network.publish(self._topic, canonical.encode(Announcement(subject=subject)))

    async def _hear(self, origin: PeerId, data: bytes) -> None:
        if self._directory.member_of(origin) is None or not self._limiter.take(origin):
            self.faults += 1
            return
        subject = canonical.decode(data, Announcement, limit_bytes=MAX_GOSSIP_BYTES).subject
        if isinstance(subject, CardAnnouncement):
            if self._directory.accept(subject.card):
                self._on_card(subject.card)
        else:
            self._directory.heard(origin, height=subject.height)
            await self._on_block(origin, subject.height, subject.id)
