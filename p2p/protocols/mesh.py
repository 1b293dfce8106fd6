"""`/nsllm/mesh/1`: validators' direct streams for consensus messages and observations, every frame acknowledged.

One long-lived stream to each validator. An acknowledgement says that the receiver's consensus has the message, not
merely its socket. What a broken stream leaves unacknowledged is sent again, so a message may come twice.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Literal

import trio
from msgspec import Meta

from nsllm.canonical import Value
from nsllm.errors import NsllmError
from nsllm.ids import Address, CountField, hex0x
from nsllm.p2p.backoff import Backoff
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError, UnreachableError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import REQUEST_S, Refused, refusal, refused_by

log = logging.getLogger(__name__)

MESH: Final = "/nsllm/mesh/1"
MAX_PAYLOAD_BYTES: Final = 2 * 1024 * 1024
"""A proposal holds a block of at most 1 MiB and its proofs."""
MAX_MESH_BYTES: Final = MAX_PAYLOAD_BYTES + 1024
QUEUE_LENGTH: Final = 256
BATCH: Final = 32
"""Frames that are on their way before their acknowledgements are waited for."""
ACK_S: Final = 10.0
"""The longest wait for the next acknowledgement: a busy receiver is no reason to send everything again."""
IDLE_S: Final = 600.0
"""A stream without a frame for this long is closed; the sender opens another when it has something to say."""

MeshKind = Literal["consensus", "observation"]
Deliver = Callable[[Address, MeshKind, bytes], Awaitable[None]]
"""Takes (sender, kind, canonical payload); returning acknowledges, raising costs the stream."""


class MeshFrame(Value, frozen=True, kw_only=True):
    """One message."""

    number: CountField
    """Ascending on each stream, from 1."""
    kind: MeshKind
    payload: Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]


class Received(Value, frozen=True, kw_only=True, tag="received"):
    """Everything up to and including `number` was delivered."""

    number: CountField


class MeshAnswer(Value, frozen=True, kw_only=True):
    """Acknowledgement of a frame, or the refusal that ends the stream."""

    answer: Received | Refused


def serve_mesh(directory: PeerDirectory, deliver: Deliver) -> StreamHandler:
    """Handler that passes validators' messages on and acknowledges each."""

    async def handler(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_MESH_BYTES)
        member = directory.member_of(stream.peer)
        if member is None or "validator" not in member.roles:
            with trio.fail_after(REQUEST_S):
                await framed.send(MeshAnswer(answer=refusal("validators only")))
            return
        last = 0
        while True:
            with trio.move_on_after(IDLE_S) as idle:
                frame = await framed.receive_or_end(MeshFrame)
            if idle.cancelled_caught or frame is None:
                return
            if frame.number != last + 1:
                raise MisbehaviourError(f"{stream.peer} sent mesh frame {frame.number} after {last}")
            last = frame.number
            await deliver(member.address, frame.kind, frame.payload)
            with trio.fail_after(REQUEST_S):
                await framed.send(MeshAnswer(answer=Received(number=last)))

    return handler


class _Lane:
    """The queue to one validator."""

    def __init__(self) -> None:
        self.queue: deque[tuple[MeshKind, bytes]] = deque()
        self.came = trio.Event()
        self.dropped = 0
        self.acknowledged = 0

    def put(self, kind: MeshKind, payload: bytes) -> None:
        if len(self.queue) >= QUEUE_LENGTH:
            self.queue.popleft()
            self.dropped += 1
        self.queue.append((kind, payload))
        self.came.set()

    def restore(self, unsent: deque[tuple[MeshKind, bytes]]) -> None:
        """Put back what was not acknowledged, before what came since."""
        unsent.extend(self.queue)
        while len(unsent) > QUEUE_LENGTH:
            unsent.popleft()
            self.dropped += 1
        self.queue = unsent


class MeshClient:
    """Sends to validators by member address. `send` never blocks; `run` carries."""

    def __init__(self, network: Network, directory: PeerDirectory, rng: random.Random) -> None:
        self._network = network
        self._directory = directory
        self._rng = rng
        self._lanes: dict[Address, _Lane] = {}
        self._nursery: trio.Nursery | None = None

    def send(self, to: Address, kind: MeshKind, payload: bytes) -> None:
        """Queue a message for one validator; the oldest is dropped when its queue is full.

        Raises:
            ValueError: longer than `MAX_PAYLOAD_BYTES`.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"mesh message of {len(payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}")
        lane = self._lanes.get(to)
        if lane is None:
            lane = self._lanes[to] = _Lane()
            if self._nursery is not None:
                self._nursery.start_soon(self._carry, to, lane)
        lane.put(kind, payload)

    def queued(self, to: Address) -> int:
        """Messages that `to` has not acknowledged yet and that are not on their way."""
        lane = self._lanes.get(to)
        return len(lane.queue) if lane is not None else 0

    def dropped(self) -> int:
        """Messages lost to full queues so far."""
        return sum(lane.dropped for lane in self._lanes.values())

    async def run(self) -> None:
        """Carry messages until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for address, lane in self._lanes.items():
                nursery.start_soon(self._carry, address, lane)
            await trio.sleep_forever()

    async def _carry(self, to: Address, lane: _Lane) -> None:
        """Keep one stream to `to` as long as there is something to send; back off while it fails."""
        backoff = Backoff(self._rng, first_s=0.1, cap_s=5.0)
        while True:
            while not lane.queue:
                lane.came = trio.Event()
                await lane.came.wait()
            before = lane.acknowledged
            try:
                await self._stream_to(to, lane)
            except (NsllmError, trio.TooSlowError) as error:
                log.info("mesh_interrupted to=%s error=%s: %s", hex0x(to), type(error).__name__, error)
            if lane.acknowledged > before:
                backoff.reset()
            await trio.sleep(backoff.next_s())

    async def _stream_to(self, to: Address, lane: _Lane) -> None:
        peer = self._directory.peer_of(to)
        if peer is None:
            raise UnreachableError(f"{hex0x(to)} is no member")
        with trio.fail_after(ACK_S):
            stream = await self._network.open(peer, MESH)
        async with FramedStream(stream, MAX_MESH_BYTES) as framed:
            number = 0
            while True:
                while not lane.queue:
                    lane.came = trio.Event()
                    await lane.came.wait()
                number = await self._batch(framed, lane, number)

    async def _batch(self, framed: FramedStream, lane: _Lane, number: int) -> int:
        """Send what is queued, up to `BATCH` frames, and wait until all of them are acknowledged."""
        unacknowledged: deque[tuple[MeshKind, bytes]] = deque()
        while lane.queue and len(unacknowledged) < BATCH:
            unacknowledged.append(lane.queue.popleft())
        try:
            for offset, (kind, payload) in enumerate(list(unacknowledged), start=1):
                with trio.fail_after(ACK_S):
                    await framed.send(MeshFrame(number=number + offset, kind=kind, payload=payload))
            while unacknowledged:
                with trio.fail_after(ACK_S):
                    answer = (await framed.receive(MeshAnswer)).answer
                if isinstance(answer, Refused):
                    raise refused_by(framed.peer, MESH, answer)
                number += 1
                if answer.number != number:
                    raise MisbehaviourError(f"{framed.peer} acknowledged {answer.number}, due was {number}")
                unacknowledged.popleft()
                lane.acknowledged += 1
        finally:
            if unacknowledged:
                lane.restore(unacknowledged)
        return number
