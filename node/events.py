"""The peer's event bus: what happened, for the status page, the log and the metrics. Never content."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from nsllm.clock import Clock
from nsllm.node.views import PeerEvent

log = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 256


class EventBus:
    """Fans events out to readers; a reader that is slow loses its oldest events, nobody waits for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._readers: dict[int, tuple[trio.MemorySendChannel[PeerEvent], trio.MemoryReceiveChannel[PeerEvent]]] = {}
        self._next_reader = 0
        self._taps: list[Callable[[PeerEvent], None]] = []

    def tap(self, tap: Callable[[PeerEvent], None]) -> None:
        """Call `tap` with every event, at once and in order; for metrics and simulation traces."""
        self._taps.append(tap)

    def emit(self, kind: str, **fields: str | int | bool | None) -> None:
        """Tell everybody that something happened."""
        event = PeerEvent(kind, self._clock.now_ms(), fields)
        if log.isEnabledFor(logging.INFO):
            log.info("%s", " ".join((kind, *(f"{name}={_shown(value)}" for name, value in fields.items()))))
        for tap in self._taps:
            tap(event)
        for send, receive in self._readers.values():
            try:
                send.send_nowait(event)
            except trio.WouldBlock:
                receive.receive_nowait()
                send.send_nowait(event)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[trio.MemoryReceiveChannel[PeerEvent]]:
        """Events from now on."""
        send, receive = trio.open_memory_channel[PeerEvent](QUEUE_LIMIT)
        number = self._next_reader
        self._next_reader += 1
        self._readers[number] = (send, receive)
        try:
            yield receive
        finally:
            del self._readers[number]
            send.close()
            receive.close()


def _shown(value: str | int | bool | None) -> str:
    """One word a value: reasons may be a peer's own words, line breaks and all."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)
