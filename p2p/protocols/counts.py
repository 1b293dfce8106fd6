"""`/nsllm/counts/1`: a member tells what it observed of reuse: how often answers to like questions were right.

Counts only, of public questions only. They are the sender's own word: who sent them is who observed them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

from msgspec import Meta

from nsllm.cache_dht.observations import BINS
from nsllm.canonical import Value
from nsllm.consensus.registry import Member
from nsllm.ids import PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, Refused, answering, dialogue, refusal, refused_by

COUNTS: Final = "/nsllm/counts/1"
MAX_ROWS: Final = 256
MAX_COUNTS_BYTES: Final = MAX_ROWS * 320 + 1024


class CountRow(Value, frozen=True, kw_only=True):
    """One counter."""

    place: Annotated[bytes, Meta(min_length=1, max_length=32)]
    """A cell of the embedding space, a record's digest, or a generator's address."""
    counts: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=2**32 - 1)], ...], Meta(min_length=2 * BINS, max_length=2 * BINS)
    ]
    """Right answers by bin of likeness, then wrong ones."""


class Told(Value, frozen=True, kw_only=True):
    """Counters as they are now."""

    rows: Annotated[tuple[CountRow, ...], Meta(min_length=1, max_length=MAX_ROWS)]


class Heard(Value, frozen=True, kw_only=True, tag="heard"):
    """They were taken in."""


class CountsAnswer(Value, frozen=True, kw_only=True):
    """Heard, or refused."""

    answer: Heard | Refused


Hear = Callable[[Sequence[CountRow], Member], Awaitable[str | None]]
"""Takes in what a member observed: None, or why not."""


def serve_counts(directory: PeerDirectory, hear: Hear) -> StreamHandler:
    """Handler for every member."""

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_COUNTS_BYTES) as framed:
            member = directory.member_of(stream.peer)
            if member is None:
                await framed.send(CountsAnswer(answer=refusal(MEMBERS_ONLY)))
                return
            reason = await hear((await framed.receive(Told)).rows, member)
            await framed.send(CountsAnswer(answer=Heard() if reason is None else refusal(reason)))

    return handler


async def tell_counts(network: Network, peer: PeerId, rows: Sequence[CountRow], *, deadline_s: float = 10.0) -> None:
    """Return once `peer` has taken in at most `MAX_ROWS` counters.

    Raises:
        RefusedError: it will not, with its reason.
        NetworkError: no answer.
    """
    async with dialogue(network, peer, COUNTS, limit_bytes=MAX_COUNTS_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(Told(rows=tuple(rows)))
        answer = (await framed.receive(CountsAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, COUNTS, answer)
