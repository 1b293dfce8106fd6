"""`/nsllm/generate/1`: a completion runs on another peer; tokens come as they are made, then the end.

Public requests only: whoever executes reads the prompt. A caller that goes away resets the stream, and the
executor stops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Final, Literal

import trio
from msgspec import Meta

from nsllm.canonical import Value
from nsllm.consensus.registry import Member
from nsllm.errors import NsllmError
from nsllm.ids import CountField, PeerId
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import MEMBERS_ONLY, REQUEST_S, Refused, refusal, refused_by, within
from nsllm.record import MAX_TEXT_CHARS, Request, Sampling, TextField, TokenField

GENERATE: Final = "/nsllm/generate/1"
MAX_GENERATE_BYTES: Final = 1024 * 1024
PIECE_S: Final = 60.0
"""The longest wait between two events: a long prompt on a slow machine."""
TOTAL_S: Final = 900.0


class GenerateRequest(Value, frozen=True, kw_only=True):
    """What the other peer is to complete."""

    request: Request
    """The executor refuses rather than answer with other weights than `model_digest`."""
    visibility: Literal["public"]


class GeneratePiece(Value, frozen=True, kw_only=True, tag="piece"):
    """Tokens as they come; `text` is complete UTF-8 and may be empty while a character is unfinished."""

    token_ids: Annotated[tuple[TokenField, ...], Meta(max_length=4096)]
    text: TextField


class GenerateDone(Value, frozen=True, kw_only=True, tag="done"):
    """The last event of a completion."""

    finish_reason: Literal["stop", "length"]
    prompt_token_ids: Annotated[tuple[TokenField, ...], Meta(max_length=MAX_TEXT_CHARS)]
    sampling: Sampling
    """Effective parameters, every field set but those that an upstream server chose."""
    counted: tuple[CountField, CountField] | None = None
    """(prompt, completion) tokens of an answer without ids, as an upstream server counts them."""


class GenerateEvent(Value, frozen=True, kw_only=True):
    """Tokens, the end, or the refusal that ends the answer."""

    event: GeneratePiece | GenerateDone | Refused


Pieces = AsyncIterator[GeneratePiece | GenerateDone]
Execute = Callable[[GenerateRequest, Member], AbstractAsyncContextManager[Pieces]]
"""Runs a request for a member. An `NsllmError` is told to the caller as a refusal; leaving the context cancels."""


def serve_generate(directory: PeerDirectory, execute: Execute) -> StreamHandler:
    """Handler for contributors."""

    async def run(framed: FramedStream, request: GenerateRequest, member: Member) -> None:
        try:
            async with execute(request, member) as events:
                async for event in events:
                    with trio.fail_after(REQUEST_S):
                        await framed.send(GenerateEvent(event=event))
        except NsllmError as error:
            # Engine errors carry no content; a stream that is gone fails here again, and costs the stream.
            with trio.fail_after(REQUEST_S):
                await framed.send(GenerateEvent(event=refusal(f"{error.code}: {error}")))
        with trio.fail_after(REQUEST_S):
            await framed.send_end()

    async def handler(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_GENERATE_BYTES)
        with trio.fail_after(REQUEST_S):
            request = await framed.receive(GenerateRequest)
            member = directory.member_of(stream.peer)
            if member is None:
                await framed.send(GenerateEvent(event=refusal(MEMBERS_ONLY)))
                return
        with trio.fail_after(TOTAL_S):
            async with trio.open_nursery() as nursery:

                async def stop_when_left() -> None:
                    await framed.wait_end()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(stop_when_left)
                await run(framed, request, member)
                nursery.cancel_scope.cancel()

    return handler


@asynccontextmanager
async def generate(
    network: Network, peer: PeerId, request: GenerateRequest, *, first_s: float = 30.0, piece_s: float = PIECE_S
) -> AsyncIterator[Pieces]:
    """Run `request` at `peer`; iterate over its pieces and the last event. Leaving the context stops the executor.

    Args:
        network: with a connection to `peer`, or an address of it.
        peer: a contributor with the model.
        request: group or public.
        first_s: longest wait for the stream and the first event, in seconds.
        piece_s: longest wait between two further events.

    Raises (on entering or while iterating):
        RefusedError: with the executor's reason.
        DeadlineError: a wait took too long.
        NetworkError: the connection or the executor went away.
    """
    with within(peer, GENERATE, first_s):
        stream = await network.open(peer, GENERATE)
    framed = FramedStream(stream, MAX_GENERATE_BYTES)
    finished = False

    async def pieces() -> Pieces:
        nonlocal finished
        wait_s = first_s
        done = False
        while True:
            with within(peer, GENERATE, wait_s):
                frame = await framed.receive_or_end(GenerateEvent)
            wait_s = piece_s
            if frame is None:
                finished = True
                if not done:
                    raise MisbehaviourError(f"{peer} ended a completion without its last event")
                return
            if isinstance(frame.event, Refused):
                raise refused_by(peer, GENERATE, frame.event)
            if done:
                raise MisbehaviourError(f"{peer} went on after the last event")
            done = isinstance(frame.event, GenerateDone)
            yield frame.event

    try:
        with within(peer, GENERATE, first_s):
            await framed.send(request)
        yield pieces()
    finally:
        await (framed.aclose() if finished else framed.reset())
