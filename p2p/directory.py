"""Who is who: the latest card of each peer, the member behind it, and how it was last heard of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import trio

from nsllm.clock import Clock
from nsllm.consensus.errors import ConsensusError
from nsllm.consensus.registry import Admission, Member, MemberRegistry, RegistryState, Role
from nsllm.errors import SignatureError
from nsllm.ids import Address, Height, NetworkId, PeerId, hex0x
from nsllm.p2p.card import PeerCard, SignedCard
from nsllm.p2p.errors import CardError

log = logging.getLogger(__name__)

MAX_STRANGERS: Final = 256
"""Cards of non-members that are kept; the one heard of first goes first."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """How a peer was last heard of. None means no data."""

    rtt_s: float | None = None
    height: Height | None = None
    last_seen_s: float | None = None
    """On trio's clock."""


class PeerDirectory:
    """Cards, members and heartbeat state, by peer id and by member address."""

    def __init__(
        self,
        network: NetworkId,
        registry: MemberRegistry,
        clock: Clock,
        on_admission: Callable[[Admission], None] = lambda _admission: None,
    ) -> None:
        """An empty directory.

        Args:
            network: whose cards are taken.
            registry: says who is a member; admissions found in cards go to it.
            clock: for expiry.
            on_admission: told of each admission that was news to the registry.
        """
        self._network = network
        self._on_admission = on_admission
        self._registry = registry
        self._clock = clock
        self._cards: dict[PeerId, SignedCard] = {}
        self._states: dict[PeerId, PeerState] = {}
        self._passed_on = 0

    @property
    def network(self) -> NetworkId:
        """The network whose cards are taken."""
        return self._network

    def accept(self, signed: SignedCard) -> bool:
        """Take a card, and the admission that it carries; True if it is news.

        Raises:
            CardError: it does not hold, contradicts the registry, or its admission does not hold.
        """
        card = signed.card
        known = self._cards.get(card.peer_id)
        if known is not None and known.card.sequence >= card.sequence:
            return False
        signed = signed.checked(self._network, self._clock.now_ms())
        if card.admission is not None:
            try:
                if self._registry.admit(card.admission):
                    self._on_admission(card.admission)
            except (ConsensusError, SignatureError) as error:
                raise CardError(f"card of {card.peer_id}: {error}") from None
        self._agree_with_registry(card)
        self._cards.pop(card.peer_id, None)
        self._cards[card.peer_id] = signed
        if self._registry.by_peer(card.peer_id) is None:
            self._forget_strangers()
        return True

    def follow(self, certified: RegistryState) -> None:
        """Know the members that a block certified, and those besides whose admission no block holds yet."""
        self._registry.follow(certified)

    def card_of(self, peer: PeerId) -> PeerCard | None:
        """The peer's latest card, unless it expired."""
        signed = self._cards.get(peer)
        return signed.card if signed is not None and signed.card.expires_ms > self._clock.now_ms() else None

    def member_cards(self) -> tuple[SignedCard, ...]:
        """Unexpired cards of members, ascending by peer id: what a hello passes on."""
        now_ms = self._clock.now_ms()
        return tuple(
            signed
            for peer, signed in sorted(self._cards.items())
            if signed.card.expires_ms > now_ms and self.member_of(peer) is not None
        )

    def some_cards(self, limit: int) -> tuple[SignedCard, ...]:
        """At most `limit` unexpired cards of members; others each time when there are more."""
        if len(self._cards) <= limit:
            return self.member_cards()
        now_ms = self._clock.now_ms()
        peers = sorted(self._cards)
        start = self._passed_on % len(peers)
        found: list[SignedCard] = []
        for peer in chain(peers[start:], peers[:start]):
            self._passed_on += 1
            signed = self._cards[peer]
            if signed.card.expires_ms > now_ms and self.member_of(peer) is not None:
                found.append(signed)
                if len(found) == limit:
                    break
        return tuple(found)

    def carded(self) -> tuple[PeerId, ...]:
        """Peers with a card that has not expired, ascending."""
        now_ms = self._clock.now_ms()
        return tuple(peer for peer, signed in sorted(self._cards.items()) if signed.card.expires_ms > now_ms)

    def members_count(self) -> int:
        """Members of the network."""
        return len(self._registry.members())

    def with_role(self, role: Role) -> tuple[PeerId, ...]:
        """Libp2p identities of the members that have `role`."""
        return tuple(member.peer_id for member in self._registry.with_role(role))

    def peers(self) -> tuple[PeerId, ...]:
        """Peers with a card or a place in the registry, ascending."""
        known = dict.fromkeys(self._cards) | dict.fromkeys(member.peer_id for member in self._registry.members())
        return tuple(sorted(known))

    def member_of(self, peer: PeerId) -> Member | None:
        """The member that this libp2p identity belongs to."""
        return self._registry.by_peer(peer)

    def has_role(self, peer: PeerId, role: Role) -> bool:
        """Whether the registry gives that peer that role."""
        member = self.member_of(peer)
        return member is not None and role in member.roles

    def peer_of(self, address: Address) -> PeerId | None:
        """The libp2p identity of a member."""
        member = self._registry.get(address)
        return member.peer_id if member is not None else None

    def multiaddrs_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where the peer's latest card says that it listens."""
        card = self.card_of(peer)
        return card.multiaddrs if card is not None else ()

    def state_of(self, peer: PeerId) -> PeerState:
        """How the peer was last heard of."""
        return self._states.get(peer, PeerState())

    def heard(self, peer: PeerId, *, rtt_s: float | None = None, height: Height | None = None) -> None:
        """Note a sign of life; None leaves what was known."""
        state = self.state_of(peer)
        self._states[peer] = replace(
            state,
            rtt_s=state.rtt_s if rtt_s is None else rtt_s,
            height=state.height if height is None else height,
            last_seen_s=trio.current_time(),
        )
        while len(self._states) > MAX_STRANGERS + len(self._registry.members()):
            self._states.pop(next(iter(self._states)))

    def _agree_with_registry(self, card: PeerCard) -> None:
        by_peer = self._registry.by_peer(card.peer_id)
        by_address = self._registry.get(card.address)
        if by_peer != by_address:
            raise CardError(f"card binds {card.peer_id} to {hex0x(card.address)}, the registry does not")

    def _forget_strangers(self) -> None:
        strangers = [peer for peer in self._cards if self._registry.by_peer(peer) is None]
        for peer in strangers[: max(0, len(strangers) - MAX_STRANGERS)]:
            del self._cards[peer]
