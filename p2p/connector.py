"""The connector: reaches bootstrap addresses and every member that is known of, again and again, and says hello.

Whoever knows one bootstrap peer learns the members' cards from its hello, and so ends up connected to all of them. Of
two members that know each other the one with the lower peer id dials at once and the other a little later, which keeps
two dials from crossing.
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
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.hello import OwnCard, say_hello

log = logging.getLogger(__name__)

FIRST_S: Final = 0.25
CAP_S: Final = 10.0
DIAL_S: Final = 10.0
TICK_S: Final = 0.5
COURTESY_S: Final = 1.0
"""How much longer the member with the higher peer id waits before it dials."""
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
        self._on_connected = on_connected
        self._dialling: dict[str, None] = {}
        self._greeted: dict[PeerId, float] = {}
        self._greeting: dict[PeerId, None] = {}
        self._woken = trio.Event()

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
                    due = trio.current_time() - self._greeted.get(peer, float("-inf")) >= HELLO_AGAIN_S
                    if due and peer not in self._greeting:
                        self._greeting[peer] = None
                        nursery.start_soon(self._hello, peer)
                for peer in self._wanted():
                    if peer not in connected and peer not in self._dialling:
                        self._dialling[peer] = None
                        nursery.start_soon(self._reach, peer)
                self._woken = trio.Event()
                with trio.move_on_after(TICK_S):
                    await self._woken.wait()

    def _wanted(self) -> list[PeerId]:
        """Members whose addresses are known, ascending."""
        return [
            peer
            for peer in self._directory.peers()
            if peer != self._network.peer_id and self._directory.member_of(peer) is not None and self._addresses(peer)
        ]

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where to try a peer: its card's addresses, then where it was reached before."""
        reached = self._network.address_of(peer)
        listed = self._directory.multiaddrs_of(peer)
        return listed if reached is None or reached in listed else (*listed, reached)

    async def _keep(self, address: str) -> None:
        """Dial a bootstrap address whenever its peer is not connected."""
        backoff = Backoff(self._rng, first_s=FIRST_S, cap_s=CAP_S)
        peer = PeerId(address.rpartition("/p2p/")[2])
        while True:
            if peer in self._network.connected() or peer == self._network.peer_id:
                backoff.reset()
                await trio.sleep(TICK_S)
                continue
            if not await self._dial(address):
                await trio.sleep(backoff.next_s())

    async def _reach(self, peer: PeerId) -> None:
        """Dial a member at the addresses of its newest card until it is connected."""
        backoff = Backoff(self._rng, first_s=FIRST_S, cap_s=CAP_S)
        try:
            if self._network.peer_id > peer:
                await trio.sleep(COURTESY_S)
            while peer not in self._network.connected():
                for address in self._addresses(peer):
                    if await self._dial(address):
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
