"""How a peer shows itself: its signed card, the connections it keeps, its heartbeat, its announcements of blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from nsllm.consensus.registry import Admission
from nsllm.ids import Height, PeerId, TimeMs
from nsllm.node.context import PeerContext
from nsllm.node.engine.port import Engine
from nsllm.p2p.card import CardModel, PeerCard, SignedCard, sign_card
from nsllm.p2p.connector import Connector
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.identity import PeerKey
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.heartbeat import HEARTBEAT, Heartbeat, serve_heartbeat
from nsllm.p2p.protocols.hello import HELLO, serve_hello

log = logging.getLogger(__name__)

CARD_TERM_MS: Final = 24 * 3600 * 1000
RENEW_MS: Final = CARD_TERM_MS // 2


class Presence:
    """Keeps this peer known to the others and the others to this peer."""

    def __init__(
        self,
        *,
        context: PeerContext,
        peer_key: PeerKey,
        network: Network,
        directory: PeerDirectory,
        engine: Engine,
        bootstrap: Sequence[str],
        height: Callable[[], Height],
    ) -> None:
        self._context = context
        self._peer_key = peer_key
        self._network = network
        self._directory = directory
        self._engine = engine
        self._height = height
        self._card: SignedCard | None = None
        self.admission: Admission | None = None
        """Ours, if the genesis does not list us."""
        self._connector = Connector(
            network, directory, self.own_card, context.rng, bootstrap=bootstrap, on_connected=self._connected
        )
        self.neighbours = self._connector.neighbours
        self._heartbeat = Heartbeat(
            network,
            directory,
            self._beat,
            on_stale_card=self._connector.greet,
            keeps=self.neighbours.keeps,
            urgent=self.neighbours.paired,
        )
        network.handle(HELLO, serve_hello(directory, self.own_card, self.on_card))
        network.handle(HEARTBEAT, serve_heartbeat(directory, self._beat))

    def own_card(self) -> SignedCard:
        """Our present card; made anew when addresses, models or admission changed, or half of its term is over."""
        now = self._context.clock.now_ms()
        card = self._card
        if card is None or self._stale(card.card, now):
            card = self._card = self._make(now)
        return card

    async def run(self) -> None:
        """Connect, greet and beat until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._connector.run)
            nursery.start_soon(self._heartbeat.run)

    def _stale(self, card: PeerCard, now: TimeMs) -> bool:
        changed = card.multiaddrs != self._network.addresses()[:8] or card.admission != self.admission
        changed = changed or card.models != self._models()
        return changed or now > card.expires_ms - RENEW_MS

    def _make(self, now: TimeMs) -> SignedCard:
        member = self._context.registry.get(self._context.address)
        if member is None and self.admission is not None:
            member = self.admission.member
        card = PeerCard(
            network=self._context.network_id,
            peer_id=self._network.peer_id,
            public_key=self._peer_key.public_key,
            address=self._context.address,
            roles=member.roles if member is not None else (),
            models=self._models(),
            multiaddrs=self._network.addresses()[:8],
            sequence=max(now, self._card.card.sequence + 1 if self._card else 0),
            expires_ms=TimeMs(now + CARD_TERM_MS),
            height=self._height(),
            admission=self.admission,
        )
        return sign_card(self._peer_key, self._context.key, card)

    def _models(self) -> tuple[CardModel, ...]:
        """Text models, the default one first, then the encoder; a card names eight."""
        info = self._engine.info()
        texts = [row.model for row in info.texts()]
        return tuple(CardModel(name=model.name, digest=model.digest) for model in (*texts[:7], info.encoder))

    def _beat(self) -> tuple[Height, int]:
        return self._height(), self.own_card().card.sequence

    def on_card(self, signed: SignedCard) -> None:
        """A card was news: its addresses are tried soon."""
        self._connector.on_card(signed)

    def _connected(self, peer: PeerId) -> None:
        self._context.events.emit("peer_connected", peer=peer)
