"""A bounded queue of announcements that drops its oldest: what `Network.subscribe` iterates over."""

from __future__ import annotations

from collections import deque
from typing import Final, Self

import trio

from nsllm.ids import PeerId

TOPIC_QUEUE_LENGTH: Final = 256


class TopicQueue:
    """Announcements of one topic; one reader."""

    def __init__(self, length: int = TOPIC_QUEUE_LENGTH) -> None:
        self._items: deque[tuple[PeerId, bytes]] = deque(maxlen=length)
        self._came = trio.Event()
        self.dropped = 0
        """Announcements that a slow reader lost."""

    def put(self, origin: PeerId, data: bytes) -> None:
        """Queue an announcement, at the cost of the oldest if there is no room."""
        if len(self._items) == self._items.maxlen:
            self.dropped += 1
        self._items.append((origin, data))
        self._came.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[PeerId, bytes]:
        await trio.lowlevel.checkpoint()
        while not self._items:
            self._came = trio.Event()
            await self._came.wait()
        return self._items.popleft()
