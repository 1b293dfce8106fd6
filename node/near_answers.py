"""Answers to like questions: found here or at other peers, chosen by the reuse policy, and learned from.

The choice is made before anything is generated; what generating then says is compared with what would have been served,
in the background, and counted. Counts are kept, questions are not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from nsllm.cache_dht.calibration import shipped
from nsllm.cache_dht.guards import may_resemble
from nsllm.cache_dht.judge import agree, compatible
from nsllm.cache_dht.observation_store import ObservationStore
from nsllm.cache_dht.reuse import Candidate, Choice, SemanticReuse, Weighed
from nsllm.embedding import quantize_embedding
from nsllm.errors import NsllmError
from nsllm.ids import Digest, Ppm, TimeMs, hex0x, short
from nsllm.node.chat import Source
from nsllm.node.config import CacheConfig
from nsllm.node.context import PeerContext
from nsllm.node.engine.port import Engine
from nsllm.node.federated_cache import FederatedCache, Found, Near
from nsllm.record import Request

log = logging.getLogger(__name__)

LESSONS: Final = 64
"""Answers that wait to be compared; more are not learned from."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that may be served for a like question."""

    found: Found
    similarity_ppm: Ppm
    """Cosine of the two questions' embeddings."""
    bound_ppm: Ppm
    """Upper bound on the chance that the answer is wrong here."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found and chosen."""

    hit: Hit | None
    weighed: Weighed | None
    """The nearest candidate where it is generated after all: what can be learned from."""
    final: bool = False
    """It is generated even if other peers have more: to learn, or because answers contradict each other."""
    near: tuple[Near, ...] = ()
    """What was found."""


@dataclass(slots=True)
class ReuseCounters:
    """What was decided and learned, since the peer started."""

    right: int = 0
    """Generated answers that agreed with what would have been served."""
    wrong: int = 0
    audits: int = 0


@dataclass(frozen=True, slots=True)
class _Lesson:
    weighed: Weighed
    answer: str
    shared: bool


NOTHING: Final = Verdict(None, None)


class NearAnswers:
    """Semantic reuse of one peer."""

    def __init__(
        self,
        *,
        context: PeerContext,
        engine: Engine,
        observations: ObservationStore,
        settings: CacheConfig,
    ) -> None:
        self._context = context
        self._engine = engine
        self._observations = observations
        self._settings = settings
        self._policy = SemanticReuse(shipped(), observations.load(), context.address, context.rng)
        self._lessons, self._learning = trio.open_memory_channel[_Lesson](LESSONS)
        self.counters = ReuseCounters()
        self.merge = self._policy.merge
        """Takes in what other peers observed."""
        self.learned: Callable[[], None] = lambda: None
        """Called when there is something that others may hear of; whoever tells them sets it."""

    @property
    def enabled(self) -> bool:
        """Whether this peer reuses answers to like questions at all."""
        return self._settings.semantic

    def limit_ppm(self, wanted: int | None) -> int:
        """Wrong hits that are accepted, in a million: what the request says, or the setting."""
        return self._settings.max_wrong_ppm if wanted is None else wanted

    def view(self) -> dict[str, int | float | None]:
        """For the status page."""
        counters = self.counters
        return {
            "reuse_limit_ppm": self._settings.max_wrong_ppm if self.enabled else None,
            "reuse_right": counters.right,
            "reuse_wrong": counters.wrong,
            "reuse_audits": counters.audits,
        }

    def looks(self, request: Request, embedding: Sequence[float] | None) -> bool:
        """Whether like questions are looked for at all."""
        return self.enabled and embedding is not None and may_resemble(request)

    async def here(
        self, cache: FederatedCache, request: Request, embedding: Sequence[float], limit_ppm: int
    ) -> Verdict:
        """Among the records of our own store, within one scope."""
        near = await cache.near(request, quantize_embedding(tuple(embedding)))
        return self._choose(cache, request, near, limit_ppm)

    async def elsewhere(
        self, cache: FederatedCache, request: Request, embedding: Sequence[float], limit_ppm: int, here: Verdict
    ) -> Verdict:
        """Among what was found here and the records of other holders, who learn the question's embedding."""
        near = await cache.remote_near(request, quantize_embedding(tuple(embedding)))
        return self._choose(cache, request, (*here.near, *near), limit_ppm) if near else NOTHING

    def learn(self, weighed: Weighed | None, answer: str, *, shared: bool) -> None:
        """Compare, soon, what was generated with what would have been served; never waits.

        Args:
            weighed: what would have been served; None: nothing.
            answer: what was generated.
            shared: other peers may hear what is counted: the question was public.
        """
        if weighed is not None:
            try:
                self._lessons.send_nowait(_Lesson(weighed, answer, shared))
            except trio.WouldBlock:
                log.info("lesson_dropped record=%s", short(weighed.candidate.digest))

    async def run(self) -> None:
        """Learn until cancelled."""
        async for lesson in self._learning:
            try:
                await self._study(lesson)
            except NsllmError as error:  # a lesson less
                log.info("lesson_failed error=%s", error)

    async def _study(self, lesson: _Lesson) -> None:
        cached = lesson.weighed.candidate.answer
        one, other = await self._engine.embed([cached, lesson.answer])
        right = agree(cached, lesson.answer, sum(a * b for a, b in zip(one, other, strict=True)))
        if right:
            self.counters.right += 1
        else:
            self.counters.wrong += 1
        observer, changed = self._policy.observe(lesson.weighed, right=right, shared=lesson.shared)
        await self._context.offload.run(lambda: self._observations.keep(observer, changed))
        if lesson.shared:
            self.learned()

    def _choose(self, cache: FederatedCache, request: Request, near: tuple[Near, ...], limit_ppm: int) -> Verdict:
        if not near:
            return NOTHING
        now_ms = self._context.clock.now_ms()
        given = {one.certified.leaf.record: one for one in near}
        found: dict[Digest, Found] = {}

        def verifies(candidate: Candidate) -> bool:
            checked = cache.verified(given[candidate.digest])
            if checked is not None:
                found[candidate.digest] = checked
            return checked is not None

        candidates = [_candidate(digest, one, now_ms) for digest, one in given.items()]
        choice: Choice = self._policy.choose(request.question(), candidates, limit_ppm, compatible, verifies)
        if choice.doubt == "audit":
            self.counters.audits += 1
        if choice.best is None or choice.doubt is not None:
            return Verdict(None, choice.best, choice.doubt in {"audit", "dissent"}, near)
        best = choice.best
        similarity = Ppm(min(1_000_000, round(best.candidate.cosine * 1_000_000)))
        return Verdict(Hit(found[best.candidate.digest], similarity, best.bound_ppm), None, near=near)


def cache_source(hit: Found | Hit, now_ms: TimeMs) -> Source:
    """What a reply says of an answer from the cache."""
    found = hit.found if isinstance(hit, Hit) else hit
    record = found.certified.signed.record
    return Source(
        kind="cache",
        generator=hex0x(record.generator),
        score_ppm=found.score_ppm,
        height=found.certified.certificate.header.height,
        age_ms=found.certified.age_ms(now_ms),
        match="semantic" if isinstance(hit, Hit) else "exact",
        similarity_ppm=hit.similarity_ppm if isinstance(hit, Hit) else 1_000_000,
        error_bound_ppm=hit.bound_ppm if isinstance(hit, Hit) else 0,
        model_digest=hex0x(record.request.model_digest),
    )


def _candidate(digest: Digest, near: Near, now_ms: TimeMs) -> Candidate:
    record = near.certified.signed.record
    return Candidate(
        digest=digest,
        question=record.request.question(),
        answer=record.text,
        generator=record.generator,
        embedding=record.embedding,
        cosine=near.cosine,
        age_ms=near.certified.age_ms(now_ms),
    )
