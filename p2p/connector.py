"""The connector: reaches bootstrap addresses and the neighbours, again and again, and says hello.

Whoever knows one bootstrap peer learns members' cards from its hello, and so ends up connected to all of them, or to
some if there are many (`nsllm.p2p.neighbours`). Of two members that want each other the one with the lower peer id
dials at once and the other a little later, which keeps two dials from crossing. In a large network, connections that
neither side keeps are dropped once they are idle.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

import trio

from nsllm.errors import NsllmError
from nsllm.ids import PeerId
from nsllm.p2p.backoff import Backoff
from nsllm.p2p.card import SignedCard
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import NetworkError, ProtocolRefusedError
from nsllm.p2p.neighbours import Neighbours
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.hello import OwnCard, say_hello

log = logging.getLogger(__name__)

FIRST_S: Final = 0.25
CAP_S: Final = 10.0
DIAL_S: Final = 10.0
TICK_S: Final = 0.5
COURTESY_S: Final = 1.0
"""How much longer the member with the higher peer id waits before it dials."""
CALM_TICK_S: Final = 5.0
"""Tick in a large network, where nobody waits for one certain connection."""
IDLE_S: Final = 90.0
"""A connection of a large network that we do not keep, and over which no beat came for so long, is dropped."""
UNREACHED: Final = 3
"""Rounds of dialling after which a neighbour of a large network is given up for another."""
HELLO_AGAIN_S: Final = 300.0
"""Hellos are repeated this often, which refreshes cards before they expire."""


class Connector:
    """Keeps us connected. `run` until cancelled; `on_card` and `greet` are for the protocols' callbacks."""

    def __init__(
        self,
        network: Network,
        directory: PeerDirectory,
        own_card: OwnCard,
        rng: random.Random,
        *,
        bootstrap: Sequence[str] = (),
        on_connected: Callable[[PeerId], None] | None = None,
    ) -> None:
        """Not running yet.

        Args:
            network: to dial over.
            directory: whose members are to be reached.
            own_card: our present card.
            rng: jitter of the back-off.
            bootstrap: multiaddrs ending in `/p2p/<id>`.
            on_connected: told of each peer once hellos were exchanged.
        """
        self._network = network
        self._directory = directory
        self._own_card = own_card
        self._rng = rng
        self._bootstrap = tuple(bootstrap)
        self._bootstrap_peers = frozenset(PeerId(address.rpartition("/p2p/")[2]) for address in bootstrap)
        self._on_connected = on_connected
        self._dialling: dict[str, None] = {}
        self._greeted: dict[PeerId, float] = {}
        self._greeting: dict[PeerId, None] = {}
        self._woken = trio.Event()
        self._since: dict[PeerId, float] = {}
        """When each connection was seen first."""
        self.neighbours = Neighbours(directory, network.peer_id, rng)

    def on_card(self, signed: SignedCard) -> None:
        """A card was news: its addresses are tried soon."""
        log.info("card peer=%s sequence=%s", signed.card.peer_id, signed.card.sequence)
        self._woken.set()

    def greet(self, peer: PeerId) -> None:
        """Say hello again soon, such as when a heartbeat tells of a newer card."""
        self._greeted.pop(peer, None)
        self._woken.set()

    def greeted(self) -> tuple[PeerId, ...]:
        """Connected peers that exchanged hellos with us, ascending."""
        return tuple(peer for peer in self._network.connected() if peer in self._greeted)

    async def run(self) -> None:
        """Connect and greet until cancelled."""
        async with trio.open_nursery() as nursery:
            for address in self._bootstrap:
                nursery.start_soon(self._keep, address)
            while True:
                connected = self._network.connected()
                for peer in [peer for peer in self._greeted if peer not in connected]:
                    del self._greeted[peer]
                for peer in connected:
                    if self._is_due(peer):
                        self._greeting[peer] = None
                        nursery.start_soon(self._hello, peer)
                for peer in self.neighbours.wanted(self._reachable):
                    if peer not in connected and peer not in self._dialling:
                        self._dialling[peer] = None
                        nursery.start_soon(self._reach, peer)
                for peer in self._idle(connected):
                    nursery.start_soon(self._network.disconnect, peer)
                self._woken = trio.Event()
                with trio.move_on_after(self._tick_s()):
                    await self._woken.wait()

    def _tick_s(self) -> float:
        return TICK_S if self.neighbours.everybody else CALM_TICK_S

    def _is_due(self, peer: PeerId) -> bool:
        """Whether to greet a connected peer now. Who only dialled because it needs us greets us if it likes."""
        if peer in self._greeting or trio.current_time() - self._greeted.get(peer, float("-inf")) < HELLO_AGAIN_S:
            return False
        return self.neighbours.keeps(peer) or peer in self._bootstrap_peers

    def _idle(self, connected: tuple[PeerId, ...]) -> list[PeerId]:
        """Connections of a large network that neither side seems to keep."""
        now_s = trio.current_time()
        self._since = {peer: self._since.get(peer, now_s) for peer in connected}
        if self.neighbours.everybody:
            return []
        return [
            peer
            for peer, since_s in self._since.items()
            if not self.neighbours.keeps(peer)
            and now_s - max(since_s, self._directory.state_of(peer).last_seen_s or 0.0) >= IDLE_S
        ]

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where to try a peer: its card's addresses, then where it was reached before."""
        reached = self._network.address_of(peer)
        listed = self._directory.multiaddrs_of(peer)
        return listed if reached is None or reached in listed else (*listed, reached)

    def _reachable(self, peer: PeerId) -> bool:
        """Whether `_addresses` has any. Asked of everybody all the time, so what is at hand comes first."""
        return bool(self._directory.multiaddrs_of(peer)) or self._network.address_of(peer) is not None

    async def _keep(self, address: str) -> None:
        """Dial a bootstrap address whenever its peer is not connected."""
        backoff = Backoff(self._rng, first_s=FIRST_S, cap_s=CAP_S)
        peer = PeerId(address.rpartition("/p2p/")[2])
        while True:
            connected = self._network.connected()
            if peer in connected or peer == self._network.peer_id or self.neighbours.enough(connected):
                backoff.reset()
                await trio.sleep(self._tick_s())
                continue
            if not await self._dial(address):
                await trio.sleep(backoff.next_s())

    async def _reach(self, peer: PeerId) -> None:
        """Dial a member at the addresses of its newest card until it is connected."""
        backoff = Backoff(self._rng, first_s=FIRST_S, cap_s=CAP_S)
        try:
            if self._network.peer_id > peer:
                await trio.sleep(COURTESY_S)
            rounds = 0
            while peer not in self._network.connected():
                for address in self._addresses(peer):
                    if await self._dial(address):
                        return
                rounds += 1
                if rounds >= UNREACHED and not self.neighbours.paired(peer):
                    self.neighbours.release(peer)
                    return
                await trio.sleep(backoff.next_s())
        finally:
            del self._dialling[peer]

    async def _dial(self, address: str) -> bool:
        try:
            with trio.fail_after(DIAL_S):
                await self._network.connect(address)
        except (NetworkError, trio.TooSlowError) as error:
            log.debug("dial_failed address=%s error=%s: %s", address, type(error).__name__, error)
            return False
        self._woken.set()
        return True

    async def _hello(self, peer: PeerId) -> None:
        """Greet one connected peer; one that does not serve hello is left alone for a while."""
        try:
            await say_hello(self._network, self._directory, peer, self._own_card, self.on_card)
        except ProtocolRefusedError:
            self._greeted[peer] = trio.current_time()
            return
        except NsllmError as error:
            log.info("hello_failed peer=%s error=%s: %s", peer, type(error).__name__, error)
            await trio.sleep(self._rng.uniform(0.5, 1.0) * COURTESY_S)
            return
        finally:
            del self._greeting[peer]
        first = peer not in self._greeted
        self._greeted[peer] = trio.current_time()
        self._directory.heard(peer)
        if first and self._on_connected is not None:
            self._on_connected(peer)
