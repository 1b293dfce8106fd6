"""The flow of a question: input validation, look-up beside prefill, generation, output validation, publication.

Text streams to the caller as it is made. The safety layers read along (`nsllm.node.safety_reader`), and an answer that
fails is cut off with `content_filter`; the whole text is judged once more before the last event. Quality (coherence)
never withholds text, it only decides whether the answer is published.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import trio

from nsllm import canonical
from nsllm.cache_dht.reuse import may_stand_in
from nsllm.consensus.certified import CertifiedRecord
from nsllm.errors import NsllmError
from nsllm.governance.validation import Decision
from nsllm.governance.validator import Validator
from nsllm.ids import Digest, Ppm, hex0x
from nsllm.node.attachments.attend import Attended, attend
from nsllm.node.attachments.port import Describer
from nsllm.node.completions import Completions
from nsllm.node.context import PeerContext
from nsllm.node.engine.port import Done, Engine, EngineRequest, ModelInfo
from nsllm.node.errors import EngineError, UnknownModelError
from nsllm.node.executors import Executors
from nsllm.node.federated_cache import FederatedCache, Found
from nsllm.node.publisher import Publisher
from nsllm.node.safety_reader import SafetyReader
from nsllm.node.service import ChatCommand, ChatDelta, ChatEvent, ChatFinished, ChatStarted, Listener, Source
from nsllm.record import (
    MAX_RECORD_BYTES,
    Record,
    Request,
    SignedRecord,
    Visibility,
    quantize_embedding,
    request_key,
    sign_record,
)

LOOKUP_DEADLINE_S: Final = 1.0
"""A remote look-up that takes longer is given up: the answer is generated instead."""
CHANNEL_LIMIT: Final = 64
Published = Literal["group", "public"]
_CHUNK = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class _Question:
    completion_id: str
    command: ChatCommand
    visibility: Visibility
    request: Request
    key: Digest
    attended: Attended
    embedding: tuple[float, ...] | None
    """Of the question; None for a private one that is judged by its wording alone."""
    created_ms: int

    @property
    def embeds(self) -> bool:
        """Whether its texts are embedded."""
        return self.embedding is not None


class Orchestrator:
    """Answers questions with this peer's engine, the federated cache and the validation layers."""

    def __init__(
        self,
        *,
        context: PeerContext,
        engine: Engine,
        describer: Describer,
        executors: Executors,
        cache: FederatedCache,
        validator: Validator,
        publisher: Publisher,
        completions: Completions,
        default_visibility: Visibility,
        embed_private: bool,
    ) -> None:
        self._context = context
        self._engine = engine
        self._describer = describer
        self._executors = executors
        self._cache = cache
        self._validator = validator
        self._publisher = publisher
        self._completions = completions
        self._default_visibility = default_visibility
        self._embed_private = embed_private

    @asynccontextmanager
    async def chat(self, command: ChatCommand) -> AsyncGenerator[trio.MemoryReceiveChannel[ChatEvent]]:
        """Run one completion; see `nsllm.node.service.PeerService.chat`.

        The channel ends early when something fails; the error is raised on leaving the context.
        """
        question = await self._admit(command)
        send, receive = trio.open_memory_channel[ChatEvent](CHANNEL_LIMIT)
        failure: NsllmError | None = None

        async def answer() -> None:
            nonlocal failure
            with send:  # closing must not yield: the reader would leave before an error is kept
                try:
                    await self._answer(question, send)
                except NsllmError as error:
                    failure = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            try:
                yield receive
            finally:
                nursery.cancel_scope.cancel()  # before the channel closes: a reader that leaves is no error
                receive.close()
        if failure is not None:
            raise failure

    async def answer(self, command: ChatCommand, listener: Listener) -> None:
        """Run one completion in the caller's task; see `nsllm.node.service.PeerService.answer`."""
        await self._answer(await self._admit(command), listener)

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

    async def _admit(self, command: ChatCommand) -> _Question:
        request, attended = await self._request(command, self._named(command.model))
        visibility = command.visibility or self._default_visibility
        embedding: tuple[float, ...] | None = None
        if visibility != "private" or self._embed_private:
            (embedding,) = await self._engine.embed([request.question()])
        kind = "chatcmpl" if command.form == "chat" else "cmpl"
        return _Question(
            completion_id=f"{kind}-{self._context.rng.getrandbits(120):030x}",
            command=command,
            visibility=visibility,
            request=request,
            key=request_key(self._context.network_id, request),
            attended=attended,
            embedding=embedding,
            created_ms=self._context.clock.now_ms(),
        )

    async def _answer(self, question: _Question, send: Listener) -> None:
        """Raises the one error of ours that ended the answer, if one did."""
        try:
            await self._judge_and_answer(question, send)
        except BaseExceptionGroup as group:
            failure = _lone(group)
            if failure is None:
                raise
            raise failure from None

    async def _judge_and_answer(self, question: _Question, send: Listener) -> None:
        policy = self._context.policy
        verdict = await self._validator.check_input(question.request.question(), question.embedding, policy)
        if verdict.withheld:
            await _say(send, self._started(question, self._own_source()))
            await self._withhold(question, send, verdict.reason, stage="input", tokens=(0, 0))
            return
        found = await self._cache.local(question.key) if self._reusable(question) else None
        if found is not None:
            await self._serve(question, found, send)
        elif self._reusable(question) and question.visibility != "private":
            await self._look_up_and_generate(question, send)
        else:
            await self._run_engine(question, None, send)

    def _reusable(self, question: _Question) -> bool:
        return question.command.reuse and may_stand_in(question.command.sampling)

    async def _look_up_and_generate(self, question: _Question, send: Listener) -> None:
        """Generate, while a remote look-up runs beside the prefill; a hit cancels the generation."""
        found: Found | None = None
        looked_up = trio.Event()

        async def look_up() -> None:
            nonlocal found
            with trio.move_on_after(LOOKUP_DEADLINE_S):
                found = await self._cache.remote(question.key)
            looked_up.set()
            if found is not None:
                generation.cancel()

        async with trio.open_nursery() as nursery:
            generation = trio.CancelScope()
            nursery.start_soon(look_up)
            with generation:
                await self._run_engine(question, looked_up, send)
            nursery.cancel_scope.cancel()
        if found is not None:
            await self._serve(question, found, send)

    async def _run_engine(self, question: _Question, looked_up: trio.Event | None, send: Listener) -> None:
        texts: list[str] = []
        token_ids: list[int] = []
        started = False
        done: Done | None = None
        private = question.visibility == "private"
        policy, messages = self._context.policy, question.request.messages
        command = question.command
        asked = replace(
            EngineRequest.of(question.request, client=command.client),
            images=question.attended.images,
            top_logprobs=command.top_logprobs,
        )
        async with trio.open_nursery() as nursery:
            reader = SafetyReader(nursery, self._validator, messages, policy, embed=question.embeds)
            async with self._executors.generate(question.request, question.visibility, asked) as pieces:
                async for piece in pieces:
                    if not started:
                        started = True
                        await self._begin(question, looked_up, send)
                    if isinstance(piece, Done):
                        done = piece
                        break
                    token_ids.extend(piece.token_ids)
                    if piece.text:
                        texts.append(piece.text)
                        reader.read(piece.text)
                    if piece.text or piece.logprobs:
                        await _say(send, ChatDelta(piece.text, piece.logprobs))
                    if reader.withheld is not None:
                        break
            nursery.cancel_scope.cancel()
        if reader.withheld is not None:
            await self._withhold(question, send, reader.withheld, stage="output", tokens=(0, len(token_ids)))
            return
        if done is None:
            raise EngineError("the model worker ended without finishing its answer", hint="ask again")
        text = "".join(texts)
        check = await self._validator.check_output(
            messages, text, policy, publishing=not private, embed=question.embeds
        )
        if check.decision.withheld:
            tokens = done.usage(token_ids)
            await self._withhold(question, send, check.decision.reason, stage="output", tokens=tokens)
            return
        await self._finish(question, send, text, tuple(token_ids), done, check.decision)

    async def _begin(self, question: _Question, looked_up: trio.Event | None, send: Listener) -> None:
        """Say that this answer is the one, unless the look-up has found another and cancelled us."""
        if looked_up is not None:
            await looked_up.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
        await _say(send, self._started(question, self._own_source()))

    async def _finish(
        self,
        question: _Question,
        send: Listener,
        text: str,
        token_ids: tuple[int, ...],
        done: Done,
        decision: Decision,
    ) -> None:
        context = self._context
        usage = done.usage(token_ids)
        self._answered(question, "engine", usage[1])
        if question.visibility == "private":
            await self._settle(question, "this answer is private: it left no trace outside this peer", None)
            await _say(send, ChatFinished(done.finish_reason, *usage, "private"))
            return
        signed = sign_record(context.key, self._record(question, text, token_ids, done, question.visibility))
        reason = _unpublishable(signed, decision)
        if reason:
            context.events.emit("unpublished", completion=question.completion_id, reason=reason)
            await self._settle(question, reason, None)
            await _say(send, ChatFinished(done.finish_reason, *usage, "unpublished", reason))
            return
        await self._settle(question, "", signed)
        self._publisher.publish(signed)
        await _say(send, ChatFinished(done.finish_reason, *usage, "pending"))

    def _record(
        self, question: _Question, text: str, token_ids: tuple[int, ...], done: Done, visibility: Published
    ) -> Record:
        assert question.embedding is not None  # only private questions have none
        return Record(
            network=self._context.network_id,
            request=question.request,
            generator=self._context.address,
            visibility=visibility,
            sampling=done.sampling,
            prompt_token_ids=done.prompt_token_ids,
            token_ids=token_ids,
            text=text,
            finish_reason=done.finish_reason,
            embedding=quantize_embedding(question.embedding),
            nonce=self._context.rng.getrandbits(53),
            created_ms=self._context.clock.now_ms(),
        )

    async def _serve(self, question: _Question, found: Found, send: Listener) -> None:
        """A certified record in place of a generation, in chunks of a word."""
        record = found.certified.signed.record
        await self._completions.add(
            question.completion_id,
            "certified",
            "",
            found.certified.signed,
            self._context.clock.now_ms(),
            own=False,
            certificate=found.certified.certificate,
        )
        await _say(send, self._started(question, _cache_source(found.certified, found.score_ppm, question.created_ms)))
        for chunk in _CHUNK.findall(record.text):
            await _say(send, ChatDelta(chunk))
        usage = (len(record.prompt_token_ids), len(record.token_ids))
        self._answered(question, "cache", usage[1])
        await _say(send, ChatFinished(record.finish_reason, *usage, "certified"))

    async def _withhold(
        self,
        question: _Question,
        send: Listener,
        reason: str,
        *,
        stage: str,
        tokens: tuple[int, int],
    ) -> None:
        self._context.events.emit(
            "withheld",
            completion=question.completion_id,
            visibility=question.visibility,
            stage=stage,
            reason=reason,
        )
        await self._settle(question, reason, None)
        await _say(send, ChatFinished("content_filter", *tokens, "withheld", reason))

    async def _settle(self, question: _Question, detail: str, signed: SignedRecord | None) -> None:
        now = self._context.clock.now_ms()
        if signed is None:
            await self._completions.note(question.completion_id, detail, now)
        else:
            await self._completions.add(question.completion_id, "pending", detail, signed, now, own=True)

    def _answered(self, question: _Question, source: str, tokens: int) -> None:
        self._context.events.emit(
            "answered",
            completion=question.completion_id,
            visibility=question.visibility,
            source=source,
            tokens=tokens,
        )

    def _started(self, question: _Question, source: Source) -> ChatStarted:
        return ChatStarted(
            completion_id=question.completion_id,
            model=question.request.model,
            created_s=question.created_ms // 1000,
            source=source,
            visibility=question.visibility,
            attachments=question.attended.notes,
        )

    def _own_source(self) -> Source:
        return Source(kind="engine", generator=hex0x(self._context.address))


async def _say(send: Listener, event: ChatEvent) -> None:
    """Send, and give up the turn only if the reader is behind: generating pauses often enough."""
    try:
        send.send_nowait(event)
    except (trio.WouldBlock, trio.BrokenResourceError):  # a reader that left has cancelled us as well
        await send.send(event)


def _unpublishable(signed: SignedRecord, decision: Decision) -> str:
    """Why an answer is given but not published; empty if it is."""
    if not decision.publishable:
        return decision.reason
    size_bytes = len(canonical.encode(signed))
    if size_bytes > MAX_RECORD_BYTES:
        return f"its record has {size_bytes} bytes, peers take at most {MAX_RECORD_BYTES}"
    return ""


def _cache_source(found: CertifiedRecord, score_ppm: Ppm, now_ms: int) -> Source:
    return Source(
        kind="cache",
        generator=hex0x(found.signed.record.generator),
        score_ppm=score_ppm,
        height=found.certificate.header.height,
        age_ms=max(0, now_ms - found.signed.record.created_ms),
    )


def _lone(group: BaseExceptionGroup[BaseException]) -> NsllmError | None:
    """The one error of ours that a nursery wrapped, however deep; None if there is anything else in the group."""
    rest = group.split(lambda error: isinstance(error, NsllmError | trio.Cancelled))[1]
    if rest is not None:
        return None
    ours = group.subgroup(NsllmError)
    error: BaseException | None = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, NsllmError) else None
