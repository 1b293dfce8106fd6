"""Reception: a caller's command becomes a question, with its model, attachments, circle, meaning and documents."""

from __future__ import annotations

from dataclasses import replace

from nsllm.node.attachments.attend import Attended
from nsllm.node.chat import ChatCommand
from nsllm.node.context import PeerContext
from nsllm.node.embeddings import Embeddings
from nsllm.node.question import Question
from nsllm.node.request_reader import RequestReader
from nsllm.node.retrieval import Retrieval
from nsllm.node.scopes import Scopes
from nsllm.record import Request, SignedChunk, Visibility, request_key


class Reception:
    """Takes in what callers ask.

    Args:
        context: of this peer.
        embeddings: of questions.
        reader: makes requests of what they send.
        scopes: its circles.
        retrieval: its documents.
        default_visibility: of questions that name none.
        embed_private: whether private questions are judged by their meaning too.
    """

    def __init__(
        self,
        *,
        context: PeerContext,
        embeddings: Embeddings,
        reader: RequestReader,
        scopes: Scopes,
        retrieval: Retrieval,
        default_visibility: Visibility,
        embed_private: bool,
    ) -> None:
        self._context = context
        self._embeddings = embeddings
        self._reader = reader
        self._scopes = scopes
        self._retrieval = retrieval
        self._default_visibility = default_visibility
        self._embed_private = embed_private

    def visibility(self, command: ChatCommand) -> Visibility:
        """Who may see what is asked and answered."""
        return command.visibility or self._default_visibility

    async def admit(self, command: ChatCommand) -> Question:
        """The question that is asked.

        Raises:
            UnknownModelError: no such model is served here.
            NsllmError: of the attachments, the group, the engine or the documents.
        """
        model = self._reader.named(command.model)
        request, attended = await self._reader.read(command, model)
        visibility = self.visibility(command)
        count = self._documents(command)
        embedding: tuple[float, ...] | None = None
        evidence: tuple[SignedChunk, ...] = ()
        if self._embeds(visibility) or count:
            embedding = await self._embeddings.question(request.question())
            if count:
                request, evidence = await self._retrieval.cited(
                    request, embedding, count, model, local=visibility != "public"
                )
        return replace(await self._asked(command, request, attended), embedding=embedding, evidence=evidence)

    async def repeat(self, command: ChatCommand) -> Question | None:
        """The question as far as an exact match needs it; None if even that takes a look at attachments or documents.

        Raises:
            UnknownModelError: no such model is served here.
            NsllmError: of the group.
        """
        if command.attached or command.prompt_token_ids or self._documents(command):
            return None
        return await self._asked(command, *await self._reader.read(command, self._reader.named(command.model)))

    async def meant(self, question: Question) -> Question:
        """The question with its embedding, unless it is a private one that is judged by its wording alone.

        Raises:
            NsllmError: of the engine.
        """
        if not self._embeds(question.visibility):
            return question
        return replace(question, embedding=await self._embeddings.question(question.request.question()))

    def _documents(self, command: ChatCommand) -> int:
        """Passages that are to stand before the question."""
        return self._retrieval.wanted(command.retrieve) if command.form == "chat" else 0

    def _embeds(self, visibility: Visibility) -> bool:
        return visibility != "private" or self._embed_private

    async def _asked(self, command: ChatCommand, request: Request, attended: Attended) -> Question:
        visibility = self.visibility(command)
        scope = await self._scopes.named(command.group) if visibility == "group" else self._scopes.public
        kind = "chatcmpl" if command.form == "chat" else "cmpl"
        return Question(
            completion_id=f"{kind}-{self._context.rng.getrandbits(120):030x}",
            command=command,
            visibility=visibility,
            request=request,
            key=request_key(self._context.network_id, request, scope.salt(self._context.network_id, request)),
            attended=attended,
            scope=scope,
            embedding=None,
            created_ms=self._context.clock.now_ms(),
        )
