"""`/nsllm/heartbeat/1`: a long-lived stream to each connected member that we keep, a beat each way every few seconds.

libp2p lets a reader of a frozen peer wait for ever: after three missed beats the connection is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from nsllm.canonical import Value
from nsllm.errors import NsllmError
from nsllm.ids import CountField, Height, HeightField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError, ProtocolRefusedError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.guard import CLEANUP_S
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, REQUEST_S

log = logging.getLogger(__name__)

HEARTBEAT: Final = "/nsllm/heartbeat/1"
MAX_BEAT_BYTES: Final = 256
BEAT_INTERVAL_S: Final = 3.0
CALM_INTERVAL_S: Final = 30.0
"""Between neighbours of a large network that do not vote with each other."""
CALM_LOOK_S: Final = 10.0
"""Between two looks for new neighbours where none is in a hurry."""
MISSES: Final = 3
IDLE_S: Final = 60.0
"""A peer that opened a heartbeat and then sends none for this long loses its stream."""
MIN_INTERVAL_S: Final = 0.05
"""Beats that come faster than this cost the sender its stream."""


class Beat(Value, frozen=True, kw_only=True):
    """One beat: who is how far."""

    number: CountField
    """Of the asking side; the answer repeats it."""
    height: HeightField
    card_sequence: CountField
    """Sequence of the sender's present card; a higher one than known is a reason to say hello again."""


BeatSource = Callable[[], tuple[Height, int]]
"""(own height, sequence of the own card)."""


def serve_heartbeat(directory: PeerDirectory, source: BeatSource) -> StreamHandler:
    """Handler that answers each beat with ours."""

    async def handler(stream: Stream) -> None:
        if directory.member_of(stream.peer) is None:
            raise RefusedError(f"heartbeat of {stream.peer}: {MEMBERS_ONLY}")
        framed = FramedStream(stream, MAX_BEAT_BYTES)
        earliest_s = trio.current_time()
        while True:
            with trio.fail_after(IDLE_S):
                beat = await framed.receive_or_end(Beat)
            if beat is None:
                return
            if trio.current_time() < earliest_s:
                raise MisbehaviourError(f"{stream.peer} beats faster than every {MIN_INTERVAL_S} s")
            earliest_s = trio.current_time() + MIN_INTERVAL_S
            directory.heard(stream.peer, height=beat.height)
            height, sequence = source()
            with trio.fail_after(REQUEST_S):
                await framed.send(Beat(number=beat.number, height=height, card_sequence=sequence))

    return handler


class Heartbeat:
    """Beats with every connected member; drops the connection of one that misses three in a row."""

    def __init__(
        self,
        network: Network,
        directory: PeerDirectory,
        source: BeatSource,
        *,
        interval_s: float = BEAT_INTERVAL_S,
        on_stale_card: Callable[[PeerId], None] | None = None,
        keeps: Callable[[PeerId], bool] = lambda _peer: True,
        urgent: Callable[[PeerId], bool] = lambda _peer: True,
    ) -> None:
        """Not running yet.

        Args:
            network: to beat over.
            directory: told of each answer.
            source: our height and card sequence.
            interval_s: between beats, and how long an answer may take.
            on_stale_card: told when a peer has a newer card than ours of it.
            keeps: whether a connected member is one that we beat with.
            urgent: whether it is beaten with every `interval_s`; others every `CALM_INTERVAL_S`.
        """
        self._network = network
        self._directory = directory
        self._source = source
        self._interval_s = interval_s
        self._on_stale_card = on_stale_card
        self._keeps = keeps
        self._urgent = urgent
        self._beating: dict[PeerId, None] = {}

    async def run(self) -> None:
        """Beat until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                connected = self._network.connected()
                for peer in connected:
                    known = peer in self._beating or self._directory.member_of(peer) is None
                    if not known and self._keeps(peer):
                        self._beating[peer] = None
                        nursery.start_soon(self._watch, peer)
                hurry = not connected or any(self._urgent(peer) for peer in connected)
                await trio.sleep(self._interval_s if hurry else CALM_LOOK_S)

    async def _watch(self, peer: PeerId) -> None:
        framed: FramedStream | None = None
        misses = 0
        number = 0
        try:
            while misses < MISSES and peer in self._network.connected() and self._keeps(peer):
                start_s = trio.current_time()
                number += 1
                try:
                    with trio.fail_after(self._interval_s):
                        if framed is None:
                            framed = FramedStream(await self._network.open(peer, HEARTBEAT), MAX_BEAT_BYTES)
                        await self._exchange(framed, number)
                    misses = 0
                except ProtocolRefusedError:
                    return
                except (NsllmError, trio.TooSlowError) as error:
                    misses += 1
                    log.info("heartbeat_missed peer=%s misses=%s error=%s", peer, misses, type(error).__name__)
                    await self._dropped(framed)
                    framed = None
                pause_s = self._interval_s if self._urgent(peer) or misses else CALM_INTERVAL_S
                await trio.sleep_until(start_s + pause_s)
            if misses >= MISSES:
                log.warning("heartbeat_lost peer=%s", peer)
                with trio.move_on_after(self._interval_s):
                    await self._network.disconnect(peer)
        finally:
            del self._beating[peer]
            await self._dropped(framed)

    async def _exchange(self, framed: FramedStream, number: int) -> None:
        height, sequence = self._source()
        sent_s = trio.current_time()
        await framed.send(Beat(number=number, height=height, card_sequence=sequence))
        beat = await framed.receive(Beat)
        if beat.number != number:
            raise MisbehaviourError(f"{framed.peer} answered beat {beat.number}, asked was {number}")
        self._directory.heard(framed.peer, rtt_s=trio.current_time() - sent_s, height=beat.height)
        card = self._directory.card_of(framed.peer)
        if self._on_stale_card is not None and (card is None or card.sequence < beat.card_sequence):
            self._on_stale_card(framed.peer)

    @staticmethod
    async def _dropped(framed: FramedStream | None) -> None:
        if framed is not None:
            with trio.move_on_after(CLEANUP_S) as scope:
                scope.shield = True
                await framed.reset()
