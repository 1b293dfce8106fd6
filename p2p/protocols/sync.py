"""`/nsllm/sync/1`: decided blocks for peers that fell behind, one frame each, then the end frame; and the tip.

Blocks come unverified: the receiver checks each certificate against the chain that it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final, Protocol

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.block import MAX_BLOCK_BYTES, DecidedBlock
from nsllm.consensus.errors import PrunedError
from nsllm.ids import Height, HeightField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.framing import frame_of
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, answering, dialogue, refusal, refused_by
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
    """What the handler serves from; `nsllm.consensus.ports.Application` has both."""

    async def decided(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Stored decided blocks from `start`, ascending, at most `count`; raises `PrunedError` for older ones."""
        ...

    async def tip(self) -> Height:
        """Height of the last committed block."""
        ...


class Blocks(Value, frozen=True, kw_only=True, tag="blocks"):
    """Decided blocks from `start`."""

    start: HeightField
    count: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]


class Tip(Value, frozen=True, kw_only=True, tag="tip"):
    """The last committed height."""


class SyncRequest(Value, frozen=True, kw_only=True):
    """What is asked."""

    query: Blocks | Tip


class Committed(Value, frozen=True, kw_only=True, tag="committed"):
    """One decided block."""

    block: DecidedBlock


class TipAt(Value, frozen=True, kw_only=True, tag="tip_at"):
    """The last committed height."""

    height: HeightField


class Pruned(Value, frozen=True, kw_only=True, tag="pruned"):
    """Not these blocks: they are no more here. A snapshot stands in their place (`/nsllm/snapshot/1`)."""

    kept_from: HeightField
    """The oldest block that is left."""


class SyncAnswer(Value, frozen=True, kw_only=True):
    """A block, the tip, that blocks are pruned, or the refusal that ends the answer."""

    answer: Committed | TipAt | Pruned | Refused


def serve_sync(directory: PeerDirectory, store: BlockStore, *, strangers: Rate = STRANGERS) -> StreamHandler:
    """Handler for every peer that keeps blocks."""
    limiter = RateLimiter(strangers)

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_SYNC_FRAME_BYTES, deadline_s=SERVE_S) as framed:
            request = await framed.receive(SyncRequest)
            if directory.member_of(stream.peer) is None and not limiter.take(stream.peer):
                await framed.send(SyncAnswer(answer=refusal(TOO_MUCH)))
                return
            if isinstance(request.query, Tip):
                await framed.send(SyncAnswer(answer=TipAt(height=await store.tip())))
            else:
                sent_bytes = 0
                together: list[bytes] = []
                try:
                    blocks = await store.decided(request.query.start, request.query.count)
                except PrunedError as error:
                    await framed.send(SyncAnswer(answer=Pruned(kept_from=error.kept_from)))
                    return
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
                await framed.send_frames(together)
            await framed.send_end()

    return handler


@lru_cache(maxsize=16)
def _frame(block: DecidedBlock) -> bytes:
    """A block as it travels; the newest are remembered, since whoever follows asks for the same."""
    return frame_of(SyncAnswer(answer=Committed(block=block)), MAX_SYNC_FRAME_BYTES)


async def fetch_blocks(
    network: Network, peer: PeerId, start: Height, count: int, *, deadline_s: float = 20.0
) -> tuple[DecidedBlock, ...]:
    """Consecutive decided blocks from `start`, unverified; fewer than `count` (at most 64) if the peer has no more.

    Raises:
        NetworkError: no answer, or a refusal.
        MisbehaviourError: other heights than were asked for.
        PrunedError: the peer has them no more.
    """
    blocks: list[DecidedBlock] = []
    query = Blocks(start=start, count=min(count, MAX_BLOCKS))
    async with dialogue(network, peer, SYNC, limit_bytes=MAX_SYNC_FRAME_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(SyncRequest(query=query))
        while (frame := await framed.receive_or_end(SyncAnswer)) is not None:
            if isinstance(frame.answer, Refused):
                raise refused_by(peer, SYNC, frame.answer)
            if isinstance(frame.answer, Pruned):
                raise PrunedError(frame.answer.kept_from)
            due = start + len(blocks)
            if not isinstance(frame.answer, Committed) or len(blocks) == query.count:
                raise MisbehaviourError(f"{peer} sent more or other than {query.count} blocks")
            if frame.answer.block.block.header.height != due:
                raise MisbehaviourError(f"{peer} sent block {frame.answer.block.block.header.height}, due was {due}")
            blocks.append(frame.answer.block)
    return tuple(blocks)


async def fetch_tip(network: Network, peer: PeerId, *, deadline_s: float = 5.0) -> Height:
    """The peer's last committed height, on its word.

    Raises:
        NetworkError: no answer, or a refusal.
    """
    async with dialogue(network, peer, SYNC, limit_bytes=MAX_SYNC_FRAME_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(SyncRequest(query=Tip()))
        answer = (await framed.receive(SyncAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, SYNC, answer)
    if not isinstance(answer, TipAt):
        raise MisbehaviourError(f"{peer} answered a question for its tip with a block")
    return answer.height
