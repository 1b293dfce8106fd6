"""Who runs a generation: this peer's engine, or another member with the same model while ours cannot."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio

from nsllm.consensus.registry import Member
from nsllm.ids import PeerId, hex0x
from nsllm.node.context import PeerContext
from nsllm.node.engine.port import Done, Engine, EngineRequest, Piece
from nsllm.node.errors import InvalidRequestError, OverloadedError
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import DeadlineError, MisbehaviourError, NetworkError
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.generate import TOTAL_S, GenerateDone, GeneratePiece, GenerateRequest, generate
from nsllm.record import MAX_TEXT_CHARS, Request, Visibility

log = logging.getLogger(__name__)

OTHERS_TRIED: Final = 3
"""Members that are asked, one after the other, before our own engine's error is the answer."""


class Executors:
    """Picks an executor for each generation, and runs other members' generations here."""

    def __init__(self, *, context: PeerContext, engine: Engine, network: Network, directory: PeerDirectory) -> None:
        self._context = context
        self._engine = engine
        self._network = network
        self._directory = directory

    @asynccontextmanager
    async def generate(
        self, request: Request, visibility: Visibility, asked: EngineRequest
    ) -> AsyncGenerator[AsyncIterator[Piece | Done]]:
        """Stream one answer from our engine; a public one from a member with the model, if ours is down.

        `asked` is the same for our engine, with what only an engine at hand can do: images, log-probabilities.

        Raises:
            ServiceError, EngineError: as `Engine.generate`; that of our own engine if no other member can help.
            NetworkError: another member's generation broke off, or went beyond its bounds.
        """
        can_move = not asked.images and asked.top_logprobs is None and asked.prompt_logprobs is None
        serving = self._engine.info().serving(request.model_digest)
        if visibility == "public" and can_move and (serving is None or serving.state != "ready"):
            remote = GenerateRequest(request=request, visibility="public")
            for executor in self._others(request):
                async with AsyncExitStack() as stack:
                    try:
                        events = await stack.enter_async_context(generate(self._network, executor, remote))
                        first = await anext(aiter(events))
                    except NetworkError as error:
                        log.info("executor_failed peer=%s error=%s", executor, error)
                        continue
                    self._context.events.emit("generation_delegated", executor=executor)
                    yield _bounded(_translated(first, events), executor, request.sampling.max_tokens)
                    return
        async with self._engine.generate(asked) as pieces:
            yield pieces

    @asynccontextmanager
    async def execute(
        self, request: GenerateRequest, member: Member
    ) -> AsyncGenerator[AsyncIterator[GeneratePiece | GenerateDone]]:
        """Run a generation for another member.

        Raises:
            InvalidRequestError: a model that is not ours.
            OverloadedError: our own callers come first; somebody waits already.
        """
        wanted = request.request.model_digest
        serving = self._engine.info().serving(wanted)
        if serving is None:
            raise InvalidRequestError(f"model {wanted.hex()[:16]} is not served here")
        if serving.queued:
            raise OverloadedError(f"{serving.queued} generations wait here already")
        log.info("generation_for member=%s", hex0x(member.address))
        asked = EngineRequest.of(request.request, client=hex0x(member.address))
        async with self._engine.generate(asked) as pieces:
            yield _spoken(pieces)

    def _others(self, request: Request) -> list[PeerId]:
        """Connected contributors that serve the very model, a few in random order."""
        found: list[PeerId] = []
        for peer in self._network.connected():
            card = self._directory.card_of(peer)
            serves = card is not None and any(model.digest == request.model_digest for model in card.models)
            if serves and self._directory.has_role(peer, "contributor"):
                found.append(peer)
        return self._context.rng.sample(found, min(OTHERS_TRIED, len(found)))


async def _translated(
    first: GeneratePiece | GenerateDone, events: AsyncIterator[GeneratePiece | GenerateDone]
) -> AsyncGenerator[Piece | Done]:
    yield _piece(first)
    async for event in events:
        yield _piece(event)


def _piece(event: GeneratePiece | GenerateDone) -> Piece | Done:
    if isinstance(event, GeneratePiece):
        return Piece(event.token_ids, event.text)
    return Done(event.finish_reason, event.prompt_token_ids, event.sampling, event.counted)


async def _bounded(
    pieces: AsyncIterator[Piece | Done], executor: PeerId, max_tokens: int | None
) -> AsyncGenerator[Piece | Done]:
    """What an executor says, as long as it keeps to what was asked: number of tokens, length of text, time."""
    ends_s = trio.current_time() + TOTAL_S
    tokens = chars = 0
    async for piece in pieces:
        if isinstance(piece, Piece):
            tokens += len(piece.token_ids)
            chars += len(piece.text)
        if tokens > (max_tokens or MAX_TEXT_CHARS) or chars > MAX_TEXT_CHARS:
            raise MisbehaviourError(f"{executor} sent {tokens} tokens and {chars} characters, more than was asked for")
        if trio.current_time() > ends_s:
            raise DeadlineError(f"{executor} did not finish within {TOTAL_S} s")
        yield piece


async def _spoken(pieces: AsyncIterator[Piece | Done]) -> AsyncGenerator[GeneratePiece | GenerateDone]:
    async for piece in pieces:
        if isinstance(piece, Piece):
            yield GeneratePiece(token_ids=piece.token_ids, text=piece.text)
        else:
            yield GenerateDone(
                finish_reason=piece.finish_reason,
                prompt_token_ids=piece.prompt_token_ids,
                sampling=piece.sampling,
                counted=piece.counted,
            )
