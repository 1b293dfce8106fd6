"""Gossipsub 1.1 for small announcements, tuned for small networks and paced below the library's limits."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import AsyncExitStack
from typing import Any, Final

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from nsllm.ids import PeerId
from nsllm.p2p.libp2p_stream import STREAM_ERRORS
from nsllm.p2p.network import MAX_GOSSIP_BYTES
from nsllm.p2p.rates import SlidingWindow
from nsllm.p2p.topics import TopicQueue
from nsllm.p2p.traffic import Traffic

log = logging.getLogger(__name__)

PUBLISH_PER_S: Final = 8
"""Below the ten messages a second and topic at which the library loses some."""
QUEUE_LENGTH: Final = 64
RPC_BYTES: Final = 16 * MAX_GOSSIP_BYTES


class Gossip:
    """Topics over gossipsub."""

    def __init__(self, host: Any, topics: dict[str, TopicQueue], traffic: Traffic) -> None:
        """Registers the gossip handlers at `host`; `topics` are subscribed to when it starts, `traffic` counts."""
        self._own = host.get_id()
        self._topics = topics
        self._traffic = traffic
        self._queue: deque[tuple[str, bytes]] = deque(maxlen=QUEUE_LENGTH)
        self._came = trio.Event()
        self._router = GossipSub(
            protocols=[PROTOCOL_ID_V11],
            # Above the peer count of small networks, so that the mesh is all of them.
            degree=12,
            degree_low=8,
            degree_high=64,
            heartbeat_interval=1,
            prune_back_off=5,
            unsubscribe_back_off=2,
            spam_protection_enabled=False,
            # All peers of a devnet share one address.
            eclipse_protection_enabled=False,
        )
        self._pubsub = Pubsub(host, self._router, max_inbound_rpc_size=RPC_BYTES, allowed_topics=set(topics) or None)

    async def start(self, stack: AsyncExitStack) -> None:
        """Run the library's services on `stack`."""
        await stack.enter_async_context(background_trio_service(self._pubsub))
        await stack.enter_async_context(background_trio_service(self._router))
        await self._pubsub.wait_until_ready()

    async def carry(self, nursery: trio.Nursery) -> None:
        """Subscribe, and run our own tasks in `nursery`; before the host listens."""
        for name, queue in self._topics.items():
            nursery.start_soon(self._receive, await self._pubsub.subscribe(name), queue)
        nursery.start_soon(self._publish)

    def publish(self, topic: str, data: bytes) -> None:
        """Queue an announcement, at the cost of the oldest if the queue is full."""
        self._queue.append((topic, data))
        self._came.set()

    async def _publish(self) -> None:
        window = SlidingWindow(PUBLISH_PER_S, 1.0)
        while True:
            while not self._queue:
                self._came = trio.Event()
                await self._came.wait()
            if not window.take():
                await trio.sleep(window.wait_s())
                continue
            topic, data = self._queue.popleft()
            try:
                await self._pubsub.publish(topic, data)
            except STREAM_ERRORS as error:
                log.info("gossip_failed topic=%s error=%s: %s", topic, type(error).__name__, error)

    async def _receive(self, subscription: Any, queue: TopicQueue) -> None:
        while True:
            message = await subscription.get()
            origin = ID(message.from_id)
            if origin != self._own and len(message.data) <= MAX_GOSSIP_BYTES:
                self._traffic.heard += 1
                queue.put(PeerId(str(origin)), bytes(message.data))
