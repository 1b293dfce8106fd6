"""The flow of a question: input validation, look-up beside prefill, generation, output validation, publication.

Text streams to the caller as it is made. The safety layers read along (`nsllm.node.safety_reader`), and an answer that
fails is cut off with `content_filter`; the whole text is judged once more before the last event. Quality (coherence)
never withholds text, it only decides whether the answer is published.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, Literal

import trio

from nsllm import canonical, passages
from nsllm.cache_dht.patience import Patience
from nsllm.cache_dht.reuse import may_stand_in
from nsllm.embedding import quantize_embedding
from nsllm.errors import NsllmError
from nsllm.governance.ports import Claim
from nsllm.governance.validation import Decision
from nsllm.governance.validator import Validator
from nsllm.ids import hex0x, short
from nsllm.node.chat import ChatCommand, ChatDelta, ChatEvent, ChatFinished, ChatStarted, Citation, Listener, Source
from nsllm.node.completions import Completions
from nsllm.node.context import PeerContext
from nsllm.node.door import Door, Visit
from nsllm.node.engine.port import Done, EngineRequest, Piece
from nsllm.node.errors import EngineError, OverloadedError
from nsllm.node.executors import Executors
from nsllm.node.federated_cache import Found
from nsllm.node.near_answers import NOTHING, Hit, NearAnswers, Verdict, cache_source
from nsllm.node.publisher import Publisher
from nsllm.node.question import LookUp, Question
from nsllm.node.reception import Reception
from nsllm.node.safety_reader import SafetyReader
from nsllm.node.side_door import SideDoor
from nsllm.node.supervision import lone_failure
from nsllm.record import (
    MAX_RECORD_BYTES,
    Record,
    SignedChunk,
    SignedRecord,
    sign_record,
)

LOOKUP_DEADLINE_S: Final = 1.0
"""A remote look-up that takes longer is given up. See `nsllm.cache_dht.patience` for how long an answer waits."""
CHANNEL_LIMIT: Final = 64
Published = Literal["group", "public"]
_CHUNK = re.compile(r"\s*\S+|\s+$")


class Orchestrator:
    """Answers questions with this peer's engine, the federated cache and the validation layers."""

    def __init__(
        self,
        *,
        context: PeerContext,
        reception: Reception,
        executors: Executors,
        near: NearAnswers,
        validator: Validator,
        publisher: Publisher,
        completions: Completions,
        doors: Callable[[], Door],
    ) -> None:
        """Nothing is asked yet.

        Args:
            context: of this peer.
            reception: makes questions of commands.
            executors: generate.
            near: answers to like questions.
            validator: judges questions and answers.
            publisher: of records.
            completions: what became of answers.
            doors: makes a door; what is published has one of its own, because it is judged for longer.
        """
        self._context = context
        self._reception = reception
        self._executors = executors
        self._near = near
        self._patience = Patience()
        self._validator = validator
        self._publisher = publisher
        self._completions = completions
        self._private_door, self._public_door = doors(), doors()
        self._side_door = SideDoor(context=context, reception=reception, near=near, validator=validator)

    @asynccontextmanager
    async def chat(self, command: ChatCommand) -> AsyncGenerator[trio.MemoryReceiveChannel[ChatEvent]]:
        """Run one completion; see `nsllm.node.service.PeerService.chat`.

        The channel ends early when something fails; the error is raised on leaving the context.
        """
        send, receive = trio.open_memory_channel[ChatEvent](CHANNEL_LIMIT)
        failure: NsllmError | None = None

        async def answer() -> None:
            nonlocal failure
            with send:  # closing must not yield: the reader would leave before an error is kept
                try:
                    await self.answer(command, send)
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
        visit: Visit | None = None
        try:
            with self._door(command).visit(command.client, listener) as visit:
                await self._answer(await self._reception.admit(command), visit)
        except OverloadedError:
            ready = None if visit is not None and visit.begun else await self._side_door.ready(command)
            if ready is None:
                raise
            await self._serve(*ready, listener)

    def _door(self, command: ChatCommand) -> Door:
        return self._private_door if self._reception.visibility(command) == "private" else self._public_door

    async def _answer(self, question: Question, send: Visit) -> None:
        """Raises the one error of ours that ended the answer, if one did."""
        try:
            await self._judge_and_answer(question, send)
        except BaseExceptionGroup as group:
            failure = lone_failure(group)
            if failure is None:
                raise
            raise failure from None

    async def _judge_and_answer(self, question: Question, send: Visit) -> None:
        policy = self._context.policy
        verdict = await self._validator.check_input(question.request.question(), question.embedding, policy)
        if verdict.withheld:
            await _say(send, self._started(question, self._own_source(question)))
            await self._withhold(question, send, verdict.reason, stage="input", tokens=(0, 0))
            return
        reusable = question.command.reuse and may_stand_in(question.command.sampling)
        found = await question.scope.cache.local(question.key) if reusable else None
        verdict_here = NOTHING
        if found is None and reusable and (embedding := self._like(question)) is not None:
            verdict_here = await self._near.here(
                question.scope.cache, question.request, embedding, self._limit_ppm(question)
            )
        hit = found or verdict_here.hit
        if hit is not None:
            await self._serve(question, hit, send)
        elif reusable and question.visibility != "private":
            await self._look_up_and_generate(question, verdict_here, send)
        else:
            await self._run_engine(question, LookUp(verdict_here.weighed), send)

    def _like(self, question: Question) -> tuple[float, ...] | None:
        """The question's embedding where answers to like questions are looked for."""
        looks = question.command.semantic and self._near.looks(question.request, question.embedding)
        return question.embedding if looks else None

    def _limit_ppm(self, question: Question) -> int:
        return self._near.limit_ppm(question.command.max_wrong_ppm)

    async def _look_up_and_generate(self, question: Question, here: Verdict, send: Visit) -> None:
        """Generate, while a remote look-up runs beside the prefill; a hit cancels the generation."""
        hit: Found | Hit | None = None
        done = trio.Event()
        look_up = LookUp(here.weighed, done)
        began_s = trio.current_time()

        async def exact() -> None:
            nonlocal hit
            found = await question.scope.cache.remote(question.key)
            if found is not None:
                hit = found
                looking.cancel()

        async def semantic(embedding: tuple[float, ...]) -> None:
            nonlocal hit
            limit_ppm = self._limit_ppm(question)
            verdict = await self._near.elsewhere(question.scope.cache, question.request, embedding, limit_ppm, here)
            hit = hit or verdict.hit
            look_up.weighed = look_up.weighed or verdict.weighed

        async def look() -> None:
            with looking:
                async with trio.open_nursery() as both:
                    both.start_soon(exact)
                    if not here.final and (embedding := self._like(question)) is not None:
                        both.start_soon(semantic, embedding)
            if question.scope.cache.reaches_peers():  # what a look-up takes that asks nobody says nothing
                self._patience.note(trio.current_time() - began_s)
            if hit is not None and not look_up.late:
                generation.cancel()
            done.set()

        looking = trio.move_on_after(LOOKUP_DEADLINE_S)
        async with trio.open_nursery() as nursery:
            generation = trio.CancelScope()
            nursery.start_soon(look)
            with generation:
                await self._run_engine(question, look_up, send)
                hit = None
            nursery.cancel_scope.cancel()
        if hit is not None:
            await self._serve(question, hit, send)

    async def _run_engine(self, question: Question, look_up: LookUp, send: Visit) -> None:
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
            prompt_logprobs=command.prompt_logprobs,
        )
        async with trio.open_nursery() as nursery:
            reader = SafetyReader(nursery, self._validator, messages, policy, embed=question.embeds)
            async with self._executors.generate(question.request, question.visibility, asked) as pieces:
                async for piece in pieces:
                    if not started:
                        started = True
                        counted = piece.prompt_tokens if isinstance(piece, Piece) else None
                        await self._begin(question, look_up, send, counted)
                    if isinstance(piece, Done):
                        done = piece
                        break
                    token_ids.extend(piece.token_ids)
                    if piece.text:
                        texts.append(piece.text)
                        reader.read(piece.text)
                    if piece.text or piece.logprobs or piece.prompt:
                        await _say(send, ChatDelta(piece.text, piece.logprobs, piece.prompt, len(token_ids)))
                    if reader.withheld is not None:
                        break
            nursery.cancel_scope.cancel()
        if reader.withheld is not None:
            await self._withhold(question, send, reader.withheld, stage="output", tokens=(0, len(token_ids)))
            return
        if done is None:
            raise EngineError("the model worker ended without finishing its answer", hint="ask again")
        send.write_ended()
        text = "".join(texts)
        check = await self._validator.check_output(
            *question.request.judged(text),
            policy,
            publishing=not private,
            embed=question.embeds,
            evidence=passages.texts(question.evidence),
            claim=self._claim(question, text, token_ids, done),
        )
        if check.decision.withheld:
            tokens = done.usage(token_ids)
            await self._withhold(question, send, check.decision.reason, stage="output", tokens=tokens)
            return
        await self._finish(question, send, text, tuple(token_ids), done, check.decision)
        self._near.learn(look_up.weighed, text, shared=question.visibility == "public")

    def _claim(self, question: Question, text: str, token_ids: Sequence[int], done: Done) -> Claim | None:
        """What the answer's record will say of its making, if this peer will be asked to score it."""
        if question.visibility == "private" or not self._context.is_validator:
            return None
        return Claim(
            request=question.request,
            sampling=done.sampling,
            prompt_token_ids=done.prompt_token_ids,
            token_ids=tuple(token_ids),
            text=text,
            finish_reason=done.finish_reason,
        )

    async def _begin(self, question: Question, look_up: LookUp, send: Visit, prompt_tokens: int | None) -> None:
        """Say that this answer is the one, unless the look-up has found another and cancelled us."""
        if look_up.done is not None:
            with trio.move_on_after(self._patience.wait_s):
                await look_up.done.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
            look_up.late = True
        started = self._started(question, self._own_source(question))
        await _say(send, replace(started, prompt_tokens=prompt_tokens))

    async def _finish(
        self,
        question: Question,
        send: Visit,
        text: str,
        token_ids: tuple[int, ...],
        done: Done,
        decision: Decision,
    ) -> None:
        context = self._context
        usage = done.usage(token_ids)
        told = partial(
            ChatFinished,
            done.finish_reason,
            *usage,
            prompt_token_ids=done.prompt_token_ids,
            token_ids=token_ids,
        )
        self._answered(question, "engine", usage[1])
        if question.visibility == "private":
            await self._settle(question, "this answer is private: it left no trace outside this peer", None)
            await _say(send, told(publication="private"))
            return
        signed = sign_record(context.key, self._record(question, text, token_ids, done, question.visibility))
        reason = _unpublishable(signed, decision)
        if reason:
            context.events.emit("unpublished", completion=question.completion_id, reason=reason)
            await self._settle(question, reason, None)
            await _say(send, told(publication="unpublished", detail=reason))
            return
        await self._settle(question, "", signed)
        self._publisher.publish(signed)
        await _say(send, told(publication="pending"))

    def _record(
        self, question: Question, text: str, token_ids: tuple[int, ...], done: Done, visibility: Published
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
            evidence=question.evidence,
            nonce=self._context.rng.getrandbits(53),
            salt=question.scope.salt(self._context.network_id, question.request),
            created_ms=self._context.clock.now_ms(),
        )

    async def _serve(self, question: Question, hit: Found | Hit, send: Listener) -> None:
        """A certified record in place of a generation, in chunks of a word."""
        found = hit.found if isinstance(hit, Hit) else hit
        if found.certified.leaf.request_key == question.key:  # a look-up by meaning may find this very request
            hit = found
        if isinstance(hit, Hit):
            question.scope.cache.counters.hits_semantic += 1
            await question.scope.cache.served(found)
            record_name = short(found.certified.leaf.record)
            self._context.events.emit("cache_hit", where="like", record=record_name, holder=found.holder)
        record = found.certified.signed.record
        await self._completions.add(
            question.completion_id,
            "certified",
            "",
            found.certified.signed,
            self._context.clock.now_ms(),
            own=False,
            scores=found.certified.scores,
        )
        usage = (len(record.prompt_token_ids), len(record.token_ids))
        started = self._started(question, cache_source(hit, question.created_ms), record.evidence)
        await _say(send, replace(started, prompt_tokens=usage[0]))
        for chunk in _CHUNK.findall(record.text):
            await _say(send, ChatDelta(chunk, tokens=usage[1]))
        self._answered(question, "cache", usage[1])
        tokens = record.prompt_token_ids, record.token_ids
        await _say(send, ChatFinished(record.finish_reason, *usage, "certified", "", *tokens))

    async def _withhold(
        self,
        question: Question,
        send: Visit,
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

    async def _settle(self, question: Question, detail: str, signed: SignedRecord | None) -> None:
        now = self._context.clock.now_ms()
        if signed is None:
            await self._completions.note(question.completion_id, detail, now)
        else:
            await self._completions.add(question.completion_id, "pending", detail, signed, now, own=True)

    def _answered(self, question: Question, source: str, tokens: int) -> None:
        self._context.events.emit(
            "answered",
            completion=question.completion_id,
            visibility=question.visibility,
            source=source,
            tokens=tokens,
        )

    def _started(
        self, question: Question, source: Source, evidence: Sequence[SignedChunk] | None = None
    ) -> ChatStarted:
        """The first event; `evidence` of a cached answer, else the question's own."""
        return ChatStarted(
            completion_id=question.completion_id,
            model=question.request.model,
            created_s=question.created_ms // 1000,
            source=source,
            visibility=question.visibility,
            group=question.scope.name,
            attachments=question.attended.notes,
            citations=tuple(map(Citation.of, question.evidence if evidence is None else evidence)),
            prompt=question.request.messages[0].content if question.request.form == "text" else "",
        )

    def _own_source(self, question: Question) -> Source:
        digest = hex0x(question.request.model_digest)
        return Source(kind="engine", generator=hex0x(self._context.address), model_digest=digest)


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
