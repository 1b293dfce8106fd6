"""The side door: who is refused for want of time still gets an answer that is ready, at a bounded cost.

An exact repeat of what is in our own store costs one read. To ask other peers, and to look for like questions, costs
messages and an embedding: one does so at a time, and as long as nothing is found that takes a quarter of the time at
most. What has attachments, or is to cite documents, is not looked for.
"""

from __future__ import annotations

import math
from typing import Final

import trio

from nsllm.cache_dht.reuse import may_stand_in
from nsllm.errors import NsllmError
from nsllm.governance.validator import Validator
from nsllm.node.chat import ChatCommand
from nsllm.node.context import PeerContext
from nsllm.node.federated_cache import Found
from nsllm.node.near_answers import Hit, NearAnswers
from nsllm.node.question import Question
from nsllm.node.reception import Reception

AT_ONCE: Final = 16
"""Who looks in our own store at once; more are refused without a look."""
LOOK_S: Final = 2.0
"""Longest look, and longest wait until a ready answer may be given out: its question is embedded and judged first."""
PAUSE: Final = 3.0
"""So many times as long as a thorough look took that found nothing, nobody looks as thoroughly again."""


class SideDoor:
    """Looks for answers that need no generation.

    Args:
        context: of this peer.
        reception: makes questions of commands.
        near: answers to like questions.
        validator: judges questions, ready answers or not.
    """

    def __init__(self, *, context: PeerContext, reception: Reception, near: NearAnswers, validator: Validator) -> None:
        self._context = context
        self._reception = reception
        self._near = near
        self._validator = validator
        self._looking = 0
        self._thorough = False
        """Somebody looks beyond our own store."""
        self._again_s = -math.inf
        """When that may be done next, in trio's seconds."""

    async def ready(self, command: ChatCommand) -> tuple[Question, Found | Hit] | None:
        """The question and its answer, if one is ready; what goes wrong here is no answer either."""
        if not command.reuse or not may_stand_in(command.sampling) or self._looking >= AT_ONCE:
            return None
        found: tuple[Question, Found | Hit] | None = None
        self._looking += 1
        try:
            with trio.move_on_after(LOOK_S):
                found = await self._looked_up(command)
        except NsllmError:  # whoever asked hears why it was refused before
            return None
        finally:
            self._looking -= 1
        return found

    async def _looked_up(self, command: ChatCommand) -> tuple[Question, Found | Hit] | None:
        question = await self._reception.repeat(command)
        if question is None:
            return None
        hit: Found | Hit | None = await question.scope.cache.local(question.key)
        if hit is None:
            question, hit = await self._elsewhere(question)
        if hit is None:
            return None
        if question.embedding is None:
            question = await self._reception.meant(question)
        policy = self._context.policy
        verdict = await self._validator.check_input(question.request.question(), question.embedding, policy)
        return None if verdict.withheld else (question, hit)

    async def _elsewhere(self, question: Question) -> tuple[Question, Found | Hit | None]:
        """Exact matches at other peers, then answers to like questions here and there."""
        began_s = trio.current_time()
        if self._thorough or began_s < self._again_s:
            return question, None
        hit: Found | Hit | None = None
        self._thorough = True
        try:
            if question.visibility != "private":
                hit = await question.scope.cache.remote(question.key)
            if hit is None and question.command.semantic:
                question = await self._reception.meant(question)
                hit = await self._like(question)
        finally:
            self._thorough = False
            if hit is None:
                now_s = trio.current_time()
                self._again_s = now_s + PAUSE * (now_s - began_s)
        return question, hit

    async def _like(self, question: Question) -> Hit | None:
        embedding, cache = question.embedding, question.scope.cache
        if embedding is None or not self._near.looks(question.request, embedding):
            return None
        limit_ppm = self._near.limit_ppm(question.command.max_wrong_ppm)
        verdict = await self._near.here(cache, question.request, embedding, limit_ppm)
        if verdict.hit is None and not verdict.final and question.visibility != "private":
            verdict = await self._near.elsewhere(cache, question.request, embedding, limit_ppm, verdict)
        return verdict.hit
