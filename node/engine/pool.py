"""The engine of a peer that loads, switches and unloads text models while it runs, within a memory budget.

One engine, the base, is there from start to end: its encoder is the one that the rubric names, and its model judges
where the rubric names no other one that is loaded. Each further model has a worker of its own. A request says by digest
which model it is for.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

import trio

from nsllm.governance.ports import JUDGED_TOKENS, Claim, JudgeModels, Likelihood, Trace
from nsllm.ids import Digest
from nsllm.node.engine.judging import Judging
from nsllm.node.engine.port import Done, Engine, EngineInfo, EngineRequest, LoadedModel, Piece, Readable
from nsllm.node.errors import (
    EngineError,
    InvalidRequestError,
    MemoryBudgetError,
    NotReadyError,
    OverloadedError,
    UnknownModelError,
)
from nsllm.offload import Offload
from nsllm.record import Message

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

MAX_MODELS: Final = 7
"""Text models at once: a peer card names eight models, the encoder among them."""
UNLOAD_GRACE_S: Final = 30.0
"""How long running generations of a model may go on that is being unloaded; then they end with an error."""
RESERVED: Final = "default"
"""What a request calls whichever model answers by default."""


class TextEngine(Engine, Protocol):
    """An engine with a worker that is started and ended here."""

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the worker running until cancelled."""
        ...

    async def wait_ready(self) -> None:
        """Return once the model is loaded. Raises `EngineError` if it cannot be."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that could be loaded."""

    needed_bytes: int
    """Memory of its worker, as estimated from its files."""
    open: Callable[[], TextEngine]
    """Makes its engine; nothing runs yet. Blocks."""


@dataclass(slots=True, eq=False)
class _Held:
    """A model with a worker of its own."""

    name: str
    digest: Digest
    engine: TextEngine
    needed_bytes: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    running: int = 0
    """Generations that run or wait."""
    idle: trio.Event = field(default_factory=trio.Event)
    """Set once it is leaving and nothing runs any more."""
    leaving: bool = False


class Models(Protocol):
    """What an operator asks of a peer's text models; implemented by `ModelPool`."""

    def loaded(self) -> tuple[LoadedModel, ...]:
        """All text models that answer, the default one first."""
        ...

    @property
    def budget_mb(self) -> int | None:
        """Memory for all of them together; None: no limit but what is free."""
        ...

    async def load(self, name: str, *, default: bool = False) -> LoadedModel:
        """Load a model of the store, see `ModelPool.load`."""
        ...

    async def unload(self, name: str) -> None:
        """End a model's worker, see `ModelPool.unload`."""
        ...


class ModelPool:
    """The `Engine` port over the base engine and what was loaded beside it. `run` it before anything is loaded.

    Args:
        base: the engine of the start; somebody else runs it.
        base_bytes: memory that its worker takes.
        find: what is known of the model called so. Blocks. Raises `UnknownModelError`, `ModelMissingError` or
            `ConfigError` if there is none that could be loaded.
        offload: for what blocks.
        budget_bytes: memory of all workers together; 0: only what is free now counts.
        free_bytes: memory that is free now.
        grace_s: how long generations of a model that is unloaded may go on.
    """

    def __init__(
        self,
        *,
        base: Engine,
        base_bytes: int,
        find: Callable[[str], Candidate],
        offload: Offload,
        budget_bytes: int,
        free_bytes: Callable[[], int],
        grace_s: float = UNLOAD_GRACE_S,
    ) -> None:
        self._base = base
        self._base_bytes = base_bytes
        self._find = find
        self._offload = offload
        self._budget_bytes = budget_bytes
        self._free_bytes = free_bytes
        self._grace_s = grace_s
        self._held: dict[str, _Held] = {}
        """By name, in the order in which they were loaded."""
        self._default: str | None = None
        """None: the base's model."""
        self._change = trio.Lock()
        self._nursery: trio.Nursery | None = None

    # Engine

    def info(self) -> EngineInfo:
        """Present state; `text` is the model that answers by default."""
        base = self._base.info()
        rows = self.loaded()
        chosen = self._chosen()
        if chosen is None:
            first = base
        else:
            mine = chosen.engine.info()
            worse = base.state if base.state != "ready" else mine.state
            first = replace(mine, encoder=base.encoder, scorer=base.scorer or base.text, state=worse)
        return replace(
            first,
            restarts=base.restarts + sum(held.engine.info().restarts for held in self._held.values()),
            active=sum(row.active for row in rows),
            queued=sum(row.queued for row in rows),
            loaded=rows,
        )

    @asynccontextmanager
    async def generate(self, request: EngineRequest) -> AsyncIterator[AsyncIterator[Piece | Done]]:
        """Stream one answer of the model that the request names, see `Engine.generate`.

        Raises:
            UnknownModelError: the model is not loaded (any more).
        """
        held = self._asked(request.model)
        asked = replace(request, model=None)
        if held is None:
            async with self._base.generate(asked) as pieces:
                yield pieces
            return
        held.running += 1
        try:
            async with held.engine.generate(asked) as pieces:
                yield pieces
        except EngineError:
            if held.leaving:
                raise EngineError(
                    f"model {held.name!r} was unloaded while it was answering", hint="ask another model"
                ) from None
            raise
        finally:
            held.running -= 1
            if held.leaving and not held.running:
                held.idle.set()

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Unit vectors of the base's encoder."""
        return await self._base.embed(texts)

    async def embed_counted(
        self, texts: Sequence[Readable], *, most_tokens: int | None = None
    ) -> tuple[list[tuple[float, ...]], int]:
        """Unit vectors of the base's encoder, and how many tokens it read."""
        return await self._base.embed_counted(texts, most_tokens=most_tokens)

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """Likelihoods under the base's judging model."""
        return await self._base.likelihoods(items, most_tokens=most_tokens)

    def judging(self, scorer: Digest) -> JudgeModels | None:
        """All models, with the loaded one of this digest as the scorer."""
        if self._base.judging(scorer) is not None:
            return self
        loaded = (held.engine for held in self._held.values() if held.digest == scorer and not held.leaving)
        engine = next(loaded, None)
        return None if engine is None else Judging(self, engine)

    def holds(self, model: Digest) -> bool:
        """Whether any of the models that are loaded is the one."""
        return self._holder(model) is not None

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """Read again by the model that the claim names. Raises `UnknownModelError` if it is not loaded (any more)."""
        engine = self._holder(claim.request.model_digest)
        if engine is None:
            raise UnknownModelError("the model that the answer claims is not loaded", hint=self._hint(), param="model")
        return await engine.retrace(claim, beside=beside)

    async def tokenize(self, request: EngineRequest, *, special: bool) -> tuple[int, ...]:
        """Tokens of a prompt, of the model that the request names."""
        held = self._asked(request.model)
        return await (self._base if held is None else held.engine).tokenize(
            replace(request, model=None), special=special
        )

    async def detokenize(self, token_ids: Sequence[int], model: Digest | None) -> str:
        """Text of tokens of a model."""
        held = self._asked(model)
        return await (self._base if held is None else held.engine).detokenize(token_ids, None)

    async def token_strs(self, token_ids: Sequence[int], model: Digest | None) -> tuple[str, ...]:
        """Tokens as a model's vocabulary writes them."""
        held = self._asked(model)
        return await (self._base if held is None else held.engine).token_strs(token_ids, None)

    # Models

    @property
    def budget_mb(self) -> int | None:
        """Memory for all workers together; None: no limit but what is free."""
        return self._budget_bytes >> 20 or None

    def loaded(self) -> tuple[LoadedModel, ...]:
        """All text models that answer, the default one first."""
        base = self._base.info()
        first = LoadedModel(
            base.text,
            base.state,
            base.active,
            base.queued,
            memory_mb=self._base_bytes >> 20,
            removable=False,
            stats=base.stats,
        )
        rows: list[tuple[str | None, LoadedModel]] = [(None, first)]
        for held in self._held.values():
            if not held.leaving:
                info = held.engine.info()
                memory_mb = held.needed_bytes >> 20
                row = LoadedModel(info.text, info.state, info.active, info.queued, memory_mb, stats=info.stats)
                rows.append((held.name, row))
        return tuple(row for _, row in sorted(rows, key=lambda row: row[0] != self._default))

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the workers of what is loaded, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def load(self, name: str, *, default: bool = False) -> LoadedModel:
        """Load a model, and with `default` let it answer where a request does not say; quick if it is loaded already.

        Raises:
            UnknownModelError, ModelMissingError, ConfigError: there is no such model that could be loaded.
            MemoryBudgetError: not enough memory for it; says how much it needs and how much there is.
            OverloadedError: as many models as there can be are loaded.
            EngineError: its worker does not start.
        """
        async with self._change:
            if name != self._base.info().text.name and name not in self._held:
                await self._load(name)
            if default:
                self._default = name if name in self._held else None
            row = next(row for row in self.loaded() if row.model.name == name)
        log.info("model_loaded name=%s default=%s", name, default)
        return row

    async def unload(self, name: str) -> None:
        """Take no more requests for a model, let those that run end (for `grace_s` at most), and end its worker.

        If it was the default one, the base's model is that again.

        Raises:
            UnknownModelError: it is not loaded.
            InvalidRequestError: it is the base's, which judges.
        """
        async with self._change:
            if name == self._base.info().text.name:
                raise InvalidRequestError(
                    f"{name!r} is the model of the start: it judges answers, and stays", param="model",
                    hint="set [engine] text_model and start the peer again",
                )  # fmt: skip
            held = self._held.get(name)
            if held is None:
                raise UnknownModelError(f"model {name!r} is not loaded", hint=self._hint(), param="model")
            held.leaving = True
            if self._default == name:
                self._default = None
            with trio.CancelScope(shield=True):  # half an unloading helps nobody
                with trio.move_on_after(self._grace_s):
                    if held.running:
                        await held.idle.wait()
                await self._end(held)
        log.info("model_unloaded name=%s", name)

    async def _load(self, name: str) -> None:
        if self._nursery is None:
            raise NotReadyError("the peer is not up yet", hint="ask again in a moment")
        if name == RESERVED:
            raise UnknownModelError(f"{name!r} is no model's name: it stands for the default model", param="model")
        if len(self._held) + 1 >= MAX_MODELS:
            raise OverloadedError(f"{MAX_MODELS} models are loaded, which is the limit", hint="unload one")
        candidate = await self._offload.run(lambda: self._find(name))
        self._check_memory(name, candidate.needed_bytes)
        engine = await self._offload.run(candidate.open)
        held = _Held(name, engine.info().text.digest, engine, candidate.needed_bytes)
        if held.digest == self._base.info().text.digest or held.digest in {row.digest for row in self._held.values()}:
            raise InvalidRequestError(f"{name!r} is loaded already, under another name", param="model")
        self._nursery.start_soon(self._run, held)
        try:
            await engine.wait_ready()
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._end(held)
            raise
        self._held[name] = held

    def _check_memory(self, name: str, needed_bytes: int) -> None:
        used_bytes = self._base_bytes + sum(held.needed_bytes for held in self._held.values())
        left_bytes = self._budget_bytes - used_bytes
        if self._budget_bytes and needed_bytes > left_bytes:
            raise MemoryBudgetError(
                f"model {name!r} needs about {needed_bytes >> 20} MB, {max(0, left_bytes) >> 20} MB of the budget of "
                f"{self._budget_bytes >> 20} MB are left",
                hint="unload a model, or raise engine.memory_mb",
                param="model",
            )
        free_bytes = self._free_bytes()
        if needed_bytes > free_bytes:
            raise MemoryBudgetError(
                f"model {name!r} needs about {needed_bytes >> 20} MB, {free_bytes >> 20} MB of memory are free",
                hint="unload a model, end other programs, or lower engine.cache_mb",
                param="model",
            )

    async def _run(self, held: _Held) -> None:
        try:
            with held.scope:
                await held.engine.run()
        finally:
            held.ended.set()
            held.idle.set()

    async def _end(self, held: _Held) -> None:
        held.scope.cancel()
        await held.ended.wait()
        self._held.pop(held.name, None)

    def _holder(self, model: Digest) -> Engine | None:
        engines: list[Engine] = [self._base, *(held.engine for held in self._held.values() if not held.leaving)]
        exact = (engine for engine in engines if engine.info().text.digest == model)
        return next(exact, None) or next((engine for engine in engines if engine.holds(model)), None)

    def _chosen(self) -> _Held | None:
        return None if self._default is None else self._held[self._default]

    def _asked(self, digest: Digest | None) -> _Held | None:
        """Who answers a request for the model with this digest; None: the base."""
        if digest is None:
            return self._chosen()
        if digest == self._base.info().text.digest:
            return None
        for held in self._held.values():
            if held.digest == digest and not held.leaving:
                return held
        raise UnknownModelError(f"model {digest.hex()[:16]} is not loaded", hint=self._hint(), param="model")

    def _hint(self) -> str:
        return "this peer serves " + ", ".join(repr(row.model.name) for row in self.loaded())
