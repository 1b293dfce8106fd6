"""What every protocol needs: a framed stream with a deadline that never outlives its use, and the word for no."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Final

import trio
from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.registry import Member
from nsllm.ids import PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import DeadlineError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream

REQUEST_S: Final = 10.0
"""How long a handler waits for its request, and for its answer to be taken."""
MAX_REASON_CHARS: Final = 200
MEMBERS_ONLY: Final = "members only"
TOO_MUCH: Final = "too many requests, try again later"

ReasonField = Annotated[str, Meta(max_length=MAX_REASON_CHARS)]


class Refused(Value, frozen=True, kw_only=True, tag="refused"):
    """An answer of no; the reason is for people and logs."""

    reason: ReasonField


def refusal(reason: str) -> Refused:
    """A refusal; long reasons are cut."""
    return Refused(reason=reason[:MAX_REASON_CHARS])


def refused_by(peer: PeerId, protocol: str, answer: Refused) -> RefusedError:
    """The error that a client raises for a refusal."""
    return RefusedError(f"{peer} refused {protocol}: {answer.reason!r}")


def member_at(directory: PeerDirectory, stream: Stream) -> Member | None:
    """The member at the other end."""
    return directory.member_of(stream.peer)


@asynccontextmanager
async def dialogue(
    network: Network, peer: PeerId, protocol: str, *, limit_bytes: int, deadline_s: float
) -> AsyncIterator[FramedStream]:
    """A stream to `peer` for the length of the block; closed after it, reset if it fails or is cancelled.

    Raises:
        DeadlineError: the block took longer than `deadline_s`.
        UnreachableError, ProtocolRefusedError: see `Network.open`.
    """
    with within(peer, protocol, deadline_s):
        async with FramedStream(await network.open(peer, protocol), limit_bytes) as framed:
            yield framed


@contextmanager
def within(peer: PeerId, protocol: str, deadline_s: float) -> Iterator[None]:
    """`trio.fail_after` whose error names the peer.

    Raises:
        DeadlineError: the block took longer than `deadline_s`.
    """
    try:
        with trio.fail_after(deadline_s):
            yield
    except trio.TooSlowError:
        raise DeadlineError(f"{peer} did not finish {protocol} within {deadline_s} s") from None


@asynccontextmanager
async def answering(stream: Stream, limit_bytes: int, *, deadline_s: float = REQUEST_S) -> AsyncIterator[FramedStream]:
    """The handler's side: framed, with a deadline for the whole block. The guard closes or resets the stream."""
    with trio.fail_after(deadline_s):
        yield FramedStream(stream, limit_bytes)
