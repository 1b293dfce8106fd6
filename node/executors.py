"""Who runs a generation: this peer's engine, or another member with the same model while ours cannot."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from nsllm.consensus.registry import Member
from nsllm.ids import PeerId, hex0x
from nsllm.node.context import PeerContext
from nsllm.node.engine.port import Done, Engine, Piece
from nsllm.node.errors import InvalidRequestError, OverloadedError
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.generate import GenerateDone, GeneratePiece, GenerateRequest, generate
from nsllm.record import Request, Visibility

log = logging.getLogger(__name__)


class Executors:
    """Picks an executor for each generation, and runs other members' generations here."""

    def __init__(self, *, context: PeerContext, engine: Engine, network: Network, directory: PeerDirectory) -> None:
        self._context = context
        self._engine = engine
        self._network = network
        self._directory = directory

    @asynccontextmanager
    async def generate(self, request: Request, visibility: Visibility) -> AsyncGenerator[AsyncIterator[Piece | Done]]:
        """Stream one answer from our engine, or from a member with the model if ours is down; private requests stay.

        Raises:
            ServiceError, EngineError: as `Engine.generate`; that of our own engine if no other member can help.
        """
        executor = None
        if visibility != "private" and self._engine.info().state != "ready":
            executor = self._other(request)
        if executor is None or visibility == "private":
            async with self._engine.generate(request.messages, request.sampling) as pieces:
                yield pieces
            return
        remote = GenerateRequest(
            model=request.model,
            model_digest=request.model_digest,
            messages=request.messages,
            sampling=request.sampling,
            visibility=visibility,
        )
        self._context.events.emit("generation_delegated", executor=executor)
        async with generate(self._network, executor, remote) as events:
            yield _translated(events)

    @asynccontextmanager
    async def execute(
        self, request: GenerateRequest, member: Member
    ) -> AsyncGenerator[AsyncIterator[GeneratePiece | GenerateDone]]:
        """Run a generation for another member.

        Raises:
            InvalidRequestError: a model that is not ours.
            OverloadedError: our own callers come first; somebody waits already.
        """
        info = self._engine.info()
        if request.model_digest != info.text.digest:
            raise InvalidRequestError(f"model {request.model_digest.hex()[:16]} is not served here")
        if info.queued:
            raise OverloadedError(f"{info.queued} generations wait here already")
        log.info("generation_for member=%s", hex0x(member.address))
        async with self._engine.generate(request.messages, request.sampling) as pieces:
            yield _spoken(pieces)

    def _other(self, request: Request) -> PeerId | None:
        """A connected contributor that serves the very model, by chance; None if there is none."""
        found: list[PeerId] = []
        for peer in self._network.connected():
            card = self._directory.card_of(peer)
            serves = card is not None and any(model.digest == request.model_digest for model in card.models)
            if serves and self._directory.has_role(peer, "contributor"):
                found.append(peer)
        return self._context.rng.choice(found) if found else None


async def _translated(events: AsyncIterator[GeneratePiece | GenerateDone]) -> AsyncGenerator[Piece | Done]:
    async for event in events:
        if isinstance(event, GeneratePiece):
            yield Piece(event.token_ids, event.text)
        else:
            yield Done(event.finish_reason, event.prompt_token_ids, event.sampling)


async def _spoken(pieces: AsyncIterator[Piece | Done]) -> AsyncGenerator[GeneratePiece | GenerateDone]:
    async for piece in pieces:
        if isinstance(piece, Piece):
            yield GeneratePiece(token_ids=piece.token_ids, text=piece.text)
        else:
            yield GenerateDone(
                finish_reason=piece.finish_reason, prompt_token_ids=piece.prompt_token_ids, sampling=piece.sampling
            )
