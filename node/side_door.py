"""The side door: who is refused for want of time still gets an answer that is ready, at a bounded cost.

An exact repeat of what is in our own store costs one read. To ask other peers, and to look for like questions, costs
messages and an embedding: few do so at once, each client once, and as long as it finds nothing that takes a quarter of
the time at most. So a client that floods takes nothing from one that asks seldom. What has attachments, or is to cite
documents, is not looked for.
"""

from __future__ import annotations

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
"""Longest look."""
JUDGE_S: Final = 10.0
"""Longest wait until a ready answer may be given out: its question is embedded and judged first."""
THOROUGH: Final = 4
"""Clients that look beyond our own store at once."""
PAUSE: Final = 3.0
"""So many times as long as such a look took that found nothing, its client does not look as thoroughly again."""


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
        self._thorough = set[str]()
        """Clients that look beyond our own store."""
        self._again_s: dict[str, float] = {}
        """When a client that found nothing there may look again, in trio's seconds."""

    async def ready(self, command: ChatCommand) -> tuple[Question, Found | Hit] | None:
        """The question and its answer, if one is ready; what goes wrong here is no answer either."""
        if not command.reuse or not may_stand_in(command.sampling) or self._looking >= AT_ONCE:
            return None
        found: tuple[Question, Found | Hit] | None = None
        passed = False
        self._looking += 1
        try:
            with trio.move_on_after(LOOK_S):
                found = await self._looked_up(command)
            if found is not None:
                with trio.move_on_after(JUDGE_S):
                    passed = await self._passes(found[0])
        except NsllmError:  # whoever asked hears why it was refused before
            return None
        finally:
            self._looking -= 1
        return found if passed else None

    async def _looked_up(self, command: ChatCommand) -> tuple[Question, Found | Hit] | None:
        question = await self._reception.repeat(command)
        if question is None:
            return None
        hit: Found | Hit | None = await question.scope.cache.local(question.key)
        if hit is None:
            question, hit = await self._elsewhere(question)
        return None if hit is None else (question, hit)

    async def _passes(self, question: Question) -> bool:
        """Whether a question may be answered at all, as the layers hear it."""
        if question.embedding is None:
            question = await self._reception.meant(question)
        policy = self._context.policy
        return not (await self._validator.check_input(question.request.question(), question.embedding, policy)).withheld

    async def _elsewhere(self, question: Question) -> tuple[Question, Found | Hit | None]:
        """Exact matches at other peers, then answers to like questions here and there."""
        client, began_s = question.command.client, trio.current_time()
        self._again_s = {one: again_s for one, again_s in self._again_s.items() if again_s > began_s}
        if client in self._thorough or client in self._again_s or len(self._thorough) >= THOROUGH:
            return question, None
        hit: Found | Hit | None = None
        self._thorough.add(client)
        try:
            if question.visibility != "private":
                hit = await question.scope.cache.remote(question.key)
            if hit is None and question.command.semantic:
                question = await self._reception.meant(question)
                hit = await self._like(question)
        finally:
            self._thorough.remove(client)
            if hit is None:
                now_s = trio.current_time()
                self._again_s[client] = now_s + PAUSE * (now_s - began_s)
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
