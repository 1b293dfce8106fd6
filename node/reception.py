"""Reception: a caller's command becomes a question, with its model, attachments, circle, meaning and documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nsllm.node.attachments.attend import Attended, attend
from nsllm.node.attachments.port import Describer
from nsllm.node.context import PeerContext
from nsllm.node.embeddings import Embeddings
from nsllm.node.engine.port import Engine, EngineRequest, ModelInfo
from nsllm.node.errors import UnknownModelError
from nsllm.node.question import Question
from nsllm.node.retrieval import Retrieval
from nsllm.node.scopes import Scopes
from nsllm.node.service import ChatCommand
from nsllm.record import Request, SignedChunk, Visibility, request_key


class Reception:
    """Takes in what callers ask.

    Args:
        context: of this peer.
        engine: its models.
        embeddings: of questions.
        describer: puts attachments into words.
        scopes: its circles.
        retrieval: its documents.
        default_visibility: of questions that name none.
        embed_private: whether private questions are judged by their meaning too.
    """

    def __init__(
        self,
        *,
        context: PeerContext,
        engine: Engine,
        embeddings: Embeddings,
        describer: Describer,
        scopes: Scopes,
        retrieval: Retrieval,
        default_visibility: Visibility,
        embed_private: bool,
    ) -> None:
        self._context = context
        self._engine = engine
        self._embeddings = embeddings
        self._describer = describer
        self._scopes = scopes
        self._retrieval = retrieval
        self._default_visibility = default_visibility
        self._embed_private = embed_private

    async def admit(self, command: ChatCommand) -> Question:
        """The question that is asked.

        Raises:
            UnknownModelError: no such model is served here.
            NsllmError: of the attachments, the group, the engine or the documents.
        """
        model = self._named(command.model)
        request, attended = await self._request(command, model)
        visibility = command.visibility or self._default_visibility
        count = self._retrieval.wanted(command.retrieve) if command.form == "chat" else 0
        scope = await self._scopes.named(command.group) if visibility == "group" else self._scopes.public
        embedding: tuple[float, ...] | None = None
        evidence: tuple[SignedChunk, ...] = ()
        if visibility != "private" or self._embed_private or count:
            embedding = await self._embeddings.question(request.question())
            if count:
                request, evidence = await self._retrieval.cited(
                    request, embedding, count, model, local=visibility != "public"
                )
        kind = "chatcmpl" if command.form == "chat" else "cmpl"
        return Question(
            completion_id=f"{kind}-{self._context.rng.getrandbits(120):030x}",
            command=command,
            visibility=visibility,
            request=request,
            key=request_key(self._context.network_id, request, scope.salt(self._context.network_id, request)),
            attended=attended,
            scope=scope,
            embedding=embedding,
            created_ms=self._context.clock.now_ms(),
            evidence=evidence,
        )

    async def tokenize(self, command: ChatCommand, *, special: bool) -> tuple[tuple[int, ...], int | None]:
        """Tokens of what is asked, see `nsllm.node.service.PeerService.tokenize`."""
        model = self._named(command.model)
        request, attended = await self._request(command, model)
        asked = replace(EngineRequest.of(request), images=attended.images)
        return await self._engine.tokenize(asked, special=special), model.context_tokens

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Text of tokens, see `nsllm.node.service.PeerService.detokenize`."""
        return await self._engine.detokenize(token_ids, self._named(model).digest)

    def _named(self, name: str) -> ModelInfo:
        served = self._engine.info()
        model = served.named(name)
        if model is None:
            names = ", ".join(repr(row.model.name) for row in served.texts())
            raise UnknownModelError(
                f"model {name!r} is not served here", hint=f"this peer serves {names}", param="model"
            )
        return model

    async def _request(self, command: ChatCommand, model: ModelInfo) -> tuple[Request, Attended]:
        attended = await attend(command.messages, command.attached, self._describer, sees=model.sees)
        request = Request(
            model=model.name,
            model_digest=model.digest,
            messages=attended.messages,
            sampling=command.sampling,
            form=command.form,
            tools=command.tools,
            guide=command.guide,
            attachments=attended.digests,
        )
        return request, attended
