"""What a flooding validator sends beside its honest words: 100,000 junk messages to each other one, and bad frames.

Nothing in it is an equivocation, which would be convicted and soon be over: signed votes are of rounds and heights that
it names once only; the rest is forged, of other epochs, cut short, or no message at all. Whoever hangs up on it is
dialled again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import trio
from msgspec.structs import replace

from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.message import MAX_MESSAGE_BYTES, PolkaCertificate, decode_message, encode_message
from nsllm.consensus.vote import Vote, VoteBody
from nsllm.errors import NsllmError
from nsllm.ids import Address
from nsllm.node.links import ConsensusMesh
from nsllm.p2p.framing import HEADER_BYTES, FramedStream, frame_of
from nsllm.p2p.protocols.mesh import MAX_MESH_BYTES, MESH, MeshClient, MeshFrame

JUNK = 100_000
TOGETHER = 250
FAR = 2**31 - 1
OVERSIZED = 40


class Flood:
    """The junk of one validator; `install` before the peer is opened."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._guard: SignerGuard | None = None
        self._height = 1
        self._number = 0

    def install(self) -> None:
        begin, send, run = SignerGuard.__init__, ConsensusMesh.send, MeshClient.run

        def begun(guard: SignerGuard, *args: Any, **kwargs: Any) -> None:
            begin(guard, *args, **kwargs)
            self._guard = guard

        def sent(mesh: ConsensusMesh, to: Address, message: bytes) -> None:
            send(mesh, to, message)
            body = decode_message(message)
            if isinstance(body, Vote):
                self._height = max(self._height, body.height)

        async def noisy(client: MeshClient) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, client)
                nursery.start_soon(self._flood_all, client)

        SignerGuard.__init__ = begun  # type: ignore[method-assign]
        ConsensusMesh.send = sent  # type: ignore[method-assign]
        MeshClient.run = noisy  # type: ignore[method-assign]

    async def _flood_all(self, client: MeshClient) -> None:
        assert self._guard is not None
        registry = client._directory._registry
        others = [a for a in registry.validators().members if a != self._guard.address]
        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(self._flood, client, other)
        self._note(f"flooded {len(others)}")

    async def _flood(self, client: MeshClient, to: Address) -> None:
        peer = client._directory.peer_of(to)
        assert peer is not None
        frames = [b""]
        left, bad = self._messages(random.Random(to)), OVERSIZED
        sent = 0
        while sent < JUNK or bad:
            try:
                stream = await client._network.open(peer, MESH)
                async with FramedStream(stream, MAX_MESH_BYTES) as framed, trio.open_nursery() as nursery:
                    nursery.start_soon(self._swallow, stream)
                    number = 0
                    while sent < JUNK:
                        frames = [
                            frame_of(
                                MeshFrame(number=number + i + 1, kind="consensus", payload=next(left)), MAX_MESH_BYTES
                            )
                            for i in range(TOGETHER)
                        ]
                        await framed.send_frames(frames)
                        number += TOGETHER
                        sent += TOGETHER
                        if sent % (JUNK // OVERSIZED) == 0 and bad:
                            break
                    bad -= 1
                    # announced as longer than any frame, and then sent all the same; the other end hangs up
                    await stream.send_all((MAX_MESH_BYTES + bad + 1).to_bytes(HEADER_BYTES, "big"))
                    for _ in range(64):
                        await stream.send_all(bytes(64 * 1024))
                    nursery.cancel_scope.cancel()
            except* (NsllmError, OSError, trio.TooSlowError):
                await trio.sleep(0.2)
        self._note(f"sent {sent} to {to.hex()}")

    @staticmethod
    async def _swallow(stream: Any) -> None:
        while await stream.receive_some(65536):
            pass

    def _messages(self, rng: random.Random) -> Iterator[bytes]:
        guard = self._guard
        assert guard is not None
        forged = self._vote(height=1, round_=1)
        real = encode_message(forged)
        while True:
            match rng.randrange(8):
                case 0:
                    yield encode_message(self._vote(height=self._height, round_=self._once()))
                case 1:
                    yield encode_message(self._vote(height=self._height + self._once(), round_=0))
                case 2:
                    yield encode_message(PolkaCertificate(votes=(replace(forged, kind="prevote"),) * 200))
                case 3:
                    yield encode_message(replace(forged, height=self._height, round=rng.randrange(6)))
                case 4:
                    yield encode_message(replace(forged, epoch=1 + rng.randrange(100)))
                case 5:
                    yield real[: rng.randrange(len(real))]
                case 6:
                    yield bytes(MAX_MESSAGE_BYTES + 1) if rng.random() < 0.002 else rng.randbytes(300)
                case _:
                    yield encode_message(replace(forged, round=FAR))

    def _once(self) -> int:
        self._number += 1
        return 1_000 + self._number

    def _vote(self, *, height: int, round_: int) -> Vote:
        """A precommit for nil, which contradicts nothing but another one of its height and round."""
        assert self._guard is not None
        unsigned: dict[str, Any] = {"epoch": 0, "height": height, "round": round_, "value": None}
        more: dict[str, Any] = {"validator": self._guard.address, "lock": None, "valid_round": None}
        body = VoteBody(kind="precommit", **unsigned, **more)
        return body.signed(self._guard._key.sign(body.digest(self._guard._network)))
