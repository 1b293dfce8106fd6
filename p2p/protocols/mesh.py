"""`/nsllm/mesh/1`: validators' direct streams for votes, observations and motions, every frame acknowledged.

One long-lived stream to each validator. Nothing waits for an acknowledgement before it is sent: frames leave as they
come, what is queued at one moment in one write. An acknowledgement says that the receiver's consensus has every frame
up to a number, not merely its socket; it may come a little later, for many frames at once. What a broken stream leaves
unacknowledged is sent again, so a message may come twice.
"""

from __future__ import annotations

import logging
import math
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
from nsllm.p2p.errors import DeadlineError, MisbehaviourError, UnreachableError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import REQUEST_S, Refused, refusal, refused_by

log = logging.getLogger(__name__)

MESH: Final = "/nsllm/mesh/1"
MAX_PAYLOAD_BYTES: Final = 2 * 1024 * 1024
"""A proposal holds a block of at most 1 MiB and its proofs."""
MAX_MESH_BYTES: Final = MAX_PAYLOAD_BYTES + 1024
QUEUE_LENGTH: Final = 256
ON_THE_WAY: Final = 256
"""Frames that may be on their way to one validator, not acknowledged yet; more wait in the queue."""
BATCH: Final = 32
"""Frames in one write, and frames that a receiver acknowledges together at most."""
BATCH_BYTES: Final = 256 * 1024
"""Payload in one write, unless a single message is longer."""
ACK_DELAY_S: Final = 0.05
"""How long a receiver waits for further frames before it acknowledges: far below any sender's patience."""
ACK_S: Final = 10.0
"""The longest wait for the next acknowledgement: a busy receiver is no reason to send everything again."""
IDLE_S: Final = 600.0
"""A stream without a frame for this long is closed; the sender opens another when it has something to say."""

MeshKind = Literal["consensus", "observation", "motion"]
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
    """Handler that passes validators' messages on and acknowledges them, some at a time."""

    async def handler(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_MESH_BYTES)
        member = directory.member_of(stream.peer)
        if member is None or "validator" not in member.roles:
            with trio.fail_after(REQUEST_S):
                await framed.send(MeshAnswer(answer=refusal("validators only")))
            return
        last = acknowledged = 0
        while True:
            with trio.move_on_after(ACK_DELAY_S if last > acknowledged else IDLE_S) as pause:
                frame = await framed.receive_or_end(MeshFrame)
            if last > acknowledged and (pause.cancelled_caught or last - acknowledged >= BATCH or frame is None):
                with trio.fail_after(REQUEST_S):
                    await framed.send(MeshAnswer(answer=Received(number=last)))
                acknowledged = last
            elif pause.cancelled_caught:
                return
            if pause.cancelled_caught:
                continue
            if frame is None:
                return
            if frame.number != last + 1:
                raise MisbehaviourError(f"{stream.peer} sent mesh frame {frame.number} after {last}")
            last = frame.number
            await deliver(member.address, frame.kind, frame.payload)

    return handler


class _Lane:
    """The queue to one validator, and what is on its way there."""

    def __init__(self) -> None:
        self.queue: deque[tuple[MeshKind, bytes]] = deque()
        self.sent: deque[tuple[MeshKind, bytes]] = deque()
        """Not acknowledged yet, in the order of their frames."""
        self.moved = trio.Event()
        self.dropped = 0
        self.acknowledged = 0

    def put(self, kind: MeshKind, payload: bytes) -> None:
        if len(self.queue) >= QUEUE_LENGTH:
            self.queue.popleft()
            self.dropped += 1
        self.queue.append((kind, payload))
        self.moved.set()

    async def ready(self) -> None:
        """Return once something may be sent."""
        while not self.queue or len(self.sent) >= ON_THE_WAY:
            self.moved = trio.Event()
            await self.moved.wait()

    def take(self) -> list[tuple[MeshKind, bytes]]:
        """The next messages, which are then on their way."""
        taken: list[tuple[MeshKind, bytes]] = []
        size_bytes = 0
        while self.queue and len(taken) < BATCH and len(self.sent) < ON_THE_WAY:
            size_bytes += len(self.queue[0][1])
            if taken and size_bytes > BATCH_BYTES:
                break
            taken.append(self.queue.popleft())
            self.sent.append(taken[-1])
        return taken

    def restore(self) -> None:
        """Put back what was not acknowledged, before what came since."""
        self.queue.extendleft(reversed(self.sent))
        self.sent.clear()
        while len(self.queue) > QUEUE_LENGTH:
            self.queue.popleft()
            self.dropped += 1


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
            await lane.ready()
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
            talk = _Talk(framed, lane)
            try:
                await talk.run()
            finally:
                lane.restore()


class _Talk:
    """One stream to one validator, from its first frame to the error that ends it."""

    def __init__(self, framed: FramedStream, lane: _Lane) -> None:
        self._framed = framed
        self._lane = lane
        self._last = 0
        """Number of the last frame that was sent."""
        self._patience = trio.CancelScope()
        """Runs out when an acknowledgement is due and does not come."""
        self._failure: NsllmError | trio.TooSlowError | None = None

    async def run(self) -> None:
        """Send and hear until the stream fails.

        Raises:
            NsllmError, trio.TooSlowError: how it failed.
        """
        async with trio.open_nursery() as nursery:
            for part in (self._send, self._hear):
                nursery.start_soon(self._until_failure, part, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _until_failure(self, part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await part()
        except (NsllmError, trio.TooSlowError) as error:
            self._failure = self._failure or error
        scope.cancel()

    async def _send(self) -> None:
        lane = self._lane
        while True:
            await lane.ready()
            first = self._last + 1
            waiting = bool(lane.sent)
            taken = lane.take()
            self._last += len(taken)
            if not waiting:
                self._patience.deadline = trio.current_time() + ACK_S
            with trio.fail_after(ACK_S):
                await self._framed.send_together(
                    [
                        MeshFrame(number=number, kind=kind, payload=payload)
                        for number, (kind, payload) in enumerate(taken, start=first)
                    ]
                )

    async def _hear(self) -> None:
        lane = self._lane
        with self._patience:
            while True:
                answer = (await self._framed.receive(MeshAnswer)).answer
                if isinstance(answer, Refused):
                    raise refused_by(self._framed.peer, MESH, answer)
                due = self._last - len(lane.sent) + 1
                if not due <= answer.number <= self._last:
                    raise MisbehaviourError(
                        f"{self._framed.peer} acknowledged {answer.number}, due was {due} to {self._last}"
                    )
                for _ in range(answer.number - due + 1):
                    lane.sent.popleft()
                    lane.acknowledged += 1
                self._patience.deadline = trio.current_time() + ACK_S if lane.sent else math.inf
                lane.moved.set()
        raise DeadlineError(f"{self._framed.peer} acknowledged nothing within {ACK_S} s")
