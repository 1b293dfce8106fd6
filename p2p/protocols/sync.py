"""`/nsllm/sync/1`: decided blocks for peers that fell behind, one frame each, then the end frame.

Blocks come unverified: the receiver checks each certificate against the chain that it holds. Followers ask at every
height, so the stream stays open for the next question (`nsllm.p2p.protocols.lines`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final, Protocol

import trio
from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.block import MAX_BLOCK_BYTES, DecidedBlock
from nsllm.consensus.errors import PrunedError
from nsllm.ids import Height, HeightField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.framing import END, FramedStream, frame_of
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, refusal, refused_by
from nsllm.p2p.protocols.lines import LISTEN_S, LISTEN_TO_STRANGERS_S, Lines, questions
from nsllm.p2p.rates import Rate, RateLimiter

SYNC: Final = "/nsllm/sync/1"
MAX_BLOCKS: Final = 64
MAX_SYNC_FRAME_BYTES: Final = MAX_BLOCK_BYTES + 64 * 1024
"""A block, and a certificate of at most 256 precommits of about 120 bytes."""
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""Blocks beyond this are left for the next request; the first one always goes."""
TOGETHER: Final = 16
TOGETHER_BYTES: Final = 64 * 1024
"""Blocks that go out in one write, unless one is larger than this."""
STRANGERS: Final = Rate(per_peer=60, total=600)
SERVE_S: Final = 60.0


class BlockStore(Protocol):
    """What the handler serves from; `nsllm.consensus.ports.Application` is one."""

    async def decided(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Stored decided blocks from `start`, ascending, at most `count`; raises `PrunedError` for older ones."""
        ...


class Blocks(Value, frozen=True, kw_only=True, tag="blocks"):
    """Decided blocks from `start`."""

    start: HeightField
    count: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]


class SyncRequest(Value, frozen=True, kw_only=True):
    """What is asked."""

    query: Blocks


class Committed(Value, frozen=True, kw_only=True, tag="committed"):
    """One decided block."""

    block: DecidedBlock


class Pruned(Value, frozen=True, kw_only=True, tag="pruned"):
    """Not these blocks: they are no more here. A snapshot stands in their place (`/nsllm/snapshot/1`)."""

    kept_from: HeightField
    """The oldest block that is left."""


class SyncAnswer(Value, frozen=True, kw_only=True):
    """A block, that blocks are pruned, or the refusal that ends the answer."""

    answer: Committed | Pruned | Refused


def serve_sync(directory: PeerDirectory, store: BlockStore, *, strangers: Rate = STRANGERS) -> StreamHandler:
    """Handler for every peer that keeps blocks."""
    limiter = RateLimiter(strangers)

    async def answer(framed: FramedStream) -> bool:
        """Answer one request; False: refused."""
        query = (await framed.receive(SyncRequest)).query
        if directory.member_of(framed.peer) is None and not limiter.take(framed.peer):
            await framed.send(SyncAnswer(answer=refusal(TOO_MUCH)))
            return False
        try:
            blocks = await store.decided(query.start, query.count)
        except PrunedError as error:
            pruned = SyncAnswer(answer=Pruned(kept_from=error.kept_from))
            await framed.send_frames([frame_of(pruned, MAX_SYNC_FRAME_BYTES), END])
            return True
        sent_bytes = 0
        together: list[bytes] = []
        for block in blocks:
            frame = _frame(block)
            size_bytes = len(frame)
            if sent_bytes and sent_bytes + size_bytes > MAX_ANSWER_BYTES:
                break
            sent_bytes += size_bytes
            together.append(frame)
            if size_bytes > TOGETHER_BYTES or len(together) >= TOGETHER:
                await framed.send_frames(together)
                together = []
        await framed.send_frames([*together, END])
        return True

    async def handler(stream: Stream) -> None:
        member = directory.member_of(stream.peer) is not None
        listen_s = LISTEN_S if member else LISTEN_TO_STRANGERS_S
        async for framed in questions(stream, MAX_SYNC_FRAME_BYTES, listen_s=listen_s):
            with trio.fail_after(SERVE_S):
                if not await answer(framed):
                    return

    return handler


@lru_cache(maxsize=16)
def _frame(block: DecidedBlock) -> bytes:
    """A block as it travels; the newest are remembered, since whoever follows asks for the same."""
    return frame_of(SyncAnswer(answer=Committed(block=block)), MAX_SYNC_FRAME_BYTES)


class BlockFetcher:
    """The asking side; keeps its lines."""

    def __init__(self, network: Network) -> None:
        self._lines = Lines(network, SYNC, MAX_SYNC_FRAME_BYTES)

    async def blocks(
        self, peer: PeerId, start: Height, count: int, *, deadline_s: float = 20.0
    ) -> tuple[DecidedBlock, ...]:
        """Consecutive decided blocks from `start`, unverified; fewer than `count` (at most 64) if there are no more.

        Raises:
            NetworkError: no answer, or a refusal.
            MisbehaviourError: other heights than were asked for.
            PrunedError: the peer has them no more.
        """
        query = Blocks(start=start, count=min(count, MAX_BLOCKS))

        async def talk(framed: FramedStream) -> tuple[DecidedBlock, ...] | Pruned:
            blocks: list[DecidedBlock] = []
            pruned: Pruned | None = None
            await framed.send(SyncRequest(query=query))
            while (frame := await framed.receive_or_end(SyncAnswer)) is not None:
                if isinstance(frame.answer, Refused):
                    raise refused_by(peer, SYNC, frame.answer)
                if pruned is not None or len(blocks) == query.count:
                    raise MisbehaviourError(f"{peer} sent more than {query.count} blocks")
                if isinstance(frame.answer, Pruned):
                    if blocks:
                        raise MisbehaviourError(f"{peer} sent blocks from {start} and says that they are pruned")
                    pruned = frame.answer
                    continue
                due, height = start + len(blocks), frame.answer.block.block.header.height
                if height != due:
                    raise MisbehaviourError(f"{peer} sent block {height}, due was {due}")
                blocks.append(frame.answer.block)
            return pruned or tuple(blocks)

        answer = await self._lines.ask(peer, talk, deadline_s=deadline_s)
        if isinstance(answer, Pruned):
            raise PrunedError(answer.kept_from)
        return answer
