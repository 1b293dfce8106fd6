"""The engine: keeps a model worker running, and gives its work to whoever asks.

The worker is another process, so nothing that torch does (a crash, memory running out, a long computation) stops this
peer's votes and heartbeats. A worker that dies or freezes is replaced after a growing pause; generations that ran in it
fail, embedding and judging are tried once more, and what waits goes on waiting.
"""

from __future__ import annotations

import logging
import random
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar, assert_never

import msgspec
import trio

from nsllm.governance.ports import JUDGED_TOKENS, Claim, Likelihood, Trace
from nsllm.ids import Digest
from nsllm.node.engine.answer import AnswerStream
from nsllm.node.engine.card import read_encoder_info, read_text_info
from nsllm.node.engine.choice import EXACT, choose, packed_place
from nsllm.node.engine.devices import HERE, Devices, Wish
from nsllm.node.engine.jobs import Jobs
from nsllm.node.engine.link import WorkerLink, WorkerSettings, open_worker, patience_s
from nsllm.node.engine.models import read_config
from nsllm.node.engine.port import Done, EngineInfo, EngineRequest, Piece, Readable
from nsllm.node.engine.protocol import (
    MAX_BATCH,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Generate,
    Judge,
    Judged,
    Pong,
    PromptTold,
    Ready,
    Refused,
    Retrace,
    Retraced,
    Started,
    Step,
    Tokenize,
    Tokenized,
    ToWorker,
)
from nsllm.node.engine.slots import Slots
from nsllm.node.engine.stats import Recorder, Timing
from nsllm.node.errors import EngineError, OverloadedError
from nsllm.record import Message, Sampling

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # where the installed stubs of trio keep it

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "failed"]
Answer = TypeVar("Answer")

MAX_EMBEDDING: Final = 64
"""Embedding messages, and others that take no time, in the worker at once: it reads texts together."""
MAX_JUDGING: Final = 8
"""Judging messages in the worker at once."""
MAX_SIDE_WAITING: Final = 64
"""Of either kind; beyond it callers of `/v1/embeddings` and `/tokenize` are refused."""
MAX_PAUSE_S: Final = 30.0
FAILED_STARTS: Final = 3
"""Starts in a row that never became ready; from then on callers are refused instead of waiting."""
RATE_WINDOW: Final = 16
"""Finished generations that tokens per second are taken from."""
SEED_BITS: Final = 48
"""Of seeds that are drawn here: a JSON reader's doubles hold them exactly."""


class WorkerEngine:
    """The `Engine` port over one worker process.

    Args:
        text: folder of the language model.
        encoder: folder of the sentence encoder.
        threads: torch threads in the worker; 1 wherever anything else runs on the machine.
        max_queue: generations that may wait beside those that run; more are refused.
        max_wait_s: who would probably wait longer for a place is refused, too; None: no limit.
        rng: source of seeds for callers that give none.
        backend: which path runs the text model; `auto` takes what suits, see `choose`.
        devices: where the batched or general path runs the text model.
        cache_mb: memory for keys and values on the fast and batched paths.
        max_active: generations that run at once.
        max_tokens: length of an answer when the caller sets none.
        observer: called with the state and the number of restarts at every change.
        settings: time limits of the worker; its models and threads are replaced by the arguments above.
        pause_s: first pause before a restart; doubles up to 30 s while starts fail.

    Raises:
        ModelMissingError: a model folder is not there or not usable (its files are digested: 0.3 s at first).
        ConfigError: a model that this engine cannot run, or not on the path that is asked for.
    """

    def __init__(
        self,
        *,
        text: Path,
        encoder: Path,
        threads: int,
        max_queue: int,
        max_wait_s: float | None = None,
        rng: random.Random,
        backend: Wish = "auto",
        devices: Devices = HERE,
        cache_mb: int = 512,
        max_active: int = 64,
        max_tokens: int = 512,
        observer: Callable[[State, int], None] = lambda _state, _restarts: None,
        settings: WorkerSettings | None = None,
        pause_s: float = 0.5,
    ) -> None:
        choice = choose(text, backend, devices)
        devices.check_model(read_config(text))
        self._path = choice.path
        self._text = read_text_info(text, choice)
        self._encoder = read_encoder_info(encoder)
        base = settings or WorkerSettings(text=text, encoder=encoder, threads=threads, load_limit_s=patience_s(text))
        self._settings = replace(
            base,
            text=text,
            encoder=encoder,
            threads=threads,
            devices=devices,
            dtype=choice.dtype,
            library=choice.library,
            device=choice.device,
            cache_mb=cache_mb,
            packed=packed_place(text, choice, self._text.digest),
        )
        self._max_tokens = max_tokens
        self._rng = rng
        self._observer = observer
        self._pause_s = self._next_pause_s = pause_s
        self._failed_starts = 0
        self._slots = Slots(max_active, max_queue, max_wait_s)
        self._embedding = trio.Semaphore(MAX_EMBEDDING, max_value=MAX_EMBEDDING)
        self._judging = trio.Semaphore(MAX_JUDGING, max_value=MAX_JUDGING)
        self._jobs = Jobs()
        self._recorder = Recorder()
        self._link: WorkerLink | None = None
        self._state: State = "starting"
        self._changed = trio.Event()
        self._restarts = 0
        self._last_failure = ""
        self._finished: deque[tuple[int, float]] = deque(maxlen=RATE_WINDOW)

    def info(self) -> EngineInfo:
        """Present state; cheap."""
        tokens = sum(count for count, _ in self._finished)
        seconds = sum(duration for _, duration in self._finished)
        return EngineInfo(
            text=self._text,
            encoder=self._encoder,
            state=self._state,
            restarts=self._restarts,
            active=self._slots.taken,
            queued=self._slots.waiting,
            tokens_per_second=tokens / seconds if seconds > 0 else None,
            stats=self._recorder.stats(
                path=self._path,
                threads=self._settings.threads,
            ),
        )

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker that is ready, for `nsllm doctor` and tests."""
        return None if self._link is None else self._link.pid

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a worker running until cancelled; reports as started at once, `wait_ready` waits for the models."""
        task_status.started()
        while True:
            try:
                await self._run_worker()
            except EngineError as error:
                self._lost(error)
            await trio.sleep(self._next_pause_s)

    async def wait_ready(self) -> None:
        """Return once the models are loaded.

        Raises:
            EngineError: several starts in a row failed; says how the last one did.
        """
        await self._ready_link()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[WorkerEngine]:
        """The engine with a nursery of its own, for tests and scripts."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.run)
            yield self
            nursery.cancel_scope.cancel()

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[Piece | Done]]:
        """Stream one answer, see `Engine.generate`. Token ids include the end token if the model chose it.

        Raises:
            ContextOverflowError: on entering; both numbers.
            InvalidRequestError: on entering: the model's chat template refuses the conversation.
            OverloadedError: on entering: the queue is full.
            EngineError: on entering or while iterating.
        """
        return self._generate(replace(request, sampling=self._complete(request.sampling)))

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Unit vectors, 384 floats a text."""
        vectors, _ = await self._embed(texts, None, refuses=False)
        return vectors

    async def embed_counted(
        self, texts: Sequence[Readable], *, most_tokens: int | None = None
    ) -> tuple[list[tuple[float, ...]], int]:
        """Unit vectors and how many tokens were read (at most 256 of each text)."""
        return await self._embed(texts, most_tokens, refuses=True)

    async def _embed(
        self, texts: Sequence[Readable], most_tokens: int | None, *, refuses: bool
    ) -> tuple[list[tuple[float, ...]], int]:
        vectors: list[tuple[float, ...]] = []
        tokens = 0
        for start in range(0, len(texts), MAX_BATCH):
            batch = tuple(texts[start : start + MAX_BATCH])
            reply = await self._ask(partial(Embed, texts=batch, most_tokens=most_tokens), Embedded, refuses=refuses)
            vectors += [struct.unpack(f"<{len(row) // 4}f", row) for row in reply.vectors]
            tokens += reply.tokens
        return vectors, tokens

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """Likelihood of each answer as the assistant's next turn; of an empty answer 0.0 over 0 tokens."""
        rows: list[Likelihood] = []
        for start in range(0, len(items), MAX_BATCH):
            batch = tuple(items[start : start + MAX_BATCH])
            reply = await self._ask(partial(Judge, items=batch, most_tokens=most_tokens), Judged, refuses=False)
            rows += [
                Likelihood(mean_logprob=mean, tokens=tokens, head_logprob=head) for mean, tokens, head in reply.rows
            ]
        return rows

    def judging(self, scorer: Digest) -> WorkerEngine | None:
        """This engine, if its text model is the one."""
        return self if scorer == self._text.digest else None

    def holds(self, model: Digest) -> bool:
        """Whether these files run here, in whatever numbers."""
        return model == self._text.digest or model in self._text.kin

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """How an answer's tokens fit the declared sampling. Raises `InvalidRequestError` if that cannot be repeated."""
        retrace = partial(Retrace, claim=claim, card=self._text.defaults, beside=beside)
        trace = (await self._ask(retrace, Retraced, refuses=False)).trace
        same = claim.request.model_digest == self._text.digest and self._text.dtype in EXACT
        return replace(trace, exact=same)

    async def tokenize(self, request: EngineRequest, *, special: bool) -> tuple[int, ...]:
        """Tokens of a prompt, see `Engine.tokenize`."""
        return (await self._ask(partial(Tokenize, request=request, special=special), Tokenized)).token_ids

    async def detokenize(self, token_ids: Sequence[int], model: Digest | None) -> str:
        """Text of tokens, see `Engine.detokenize`; of the only model that there is here."""
        del model
        return (await self._ask(partial(Detokenize, token_ids=tuple(token_ids)), Detokenized)).text

    async def token_strs(self, token_ids: Sequence[int], model: Digest | None) -> tuple[str, ...]:
        """Tokens as the vocabulary writes them, see `Engine.token_strs`; of the only model that there is here."""
        del model
        return (await self._ask(partial(Detokenize, token_ids=tuple(token_ids), apart=True), Detokenized)).written

    def _complete(self, sampling: Sampling) -> Sampling:
        """Every field set but `max_tokens`: the caller's values, then the model card's, then a drawn seed."""
        defaults = msgspec.structs.asdict(self._text.defaults)
        given = msgspec.structs.asdict(sampling)
        merged = {name: defaults[name] if value is None else value for name, value in given.items()}
        if merged["seed"] is None:
            merged["seed"] = self._rng.getrandbits(SEED_BITS)
        return Sampling(**merged)

    @asynccontextmanager
    async def _generate(self, request: EngineRequest) -> AsyncIterator[AnswerStream]:
        timing = Timing(self._recorder, trio.current_time())
        async with self._slots.place(request.client):
            link = await self._ready_link()
            make = partial(Generate, request=request, max_tokens_cap=self._max_tokens)
            with self._jobs.open(link, make, timing) as inbox:
                first = await inbox.take()
                assert isinstance(first, Started)
                effective = msgspec.structs.replace(request.sampling, max_tokens=first.max_tokens)
                try:
                    yield AnswerStream(inbox, first.prompt_token_ids, effective)
                finally:
                    if timing.over() in {"stop", "length"}:
                        self._finished.append((timing.tokens, timing.decoding_s))

    async def _ask(self, make: Callable[..., ToWorker], kind: type[Answer], *, refuses: bool = True) -> Answer:
        """One embedding or judging message and its reply; once more if the worker dies over it.

        What belongs to an answer that was let in is not refused: there are not more of these than were let in.
        """
        judging = issubclass(kind, Judged | Retraced)
        places, what = (self._judging, "judging") if judging else (self._embedding, "embedding")
        if refuses and places.statistics().tasks_waiting >= MAX_SIDE_WAITING:
            raise OverloadedError(f"{MAX_SIDE_WAITING} {what} jobs wait", hint="try again in a moment")
        async with places:
            try:
                return await self._ask_once(make, kind)
            except EngineError:
                if self._state == "failed":
                    raise
            return await self._ask_once(make, kind)

    async def _ask_once(self, make: Callable[..., ToWorker], kind: type[Answer]) -> Answer:
        link = await self._ready_link()
        with self._jobs.open(link, make) as inbox:
            reply = await inbox.take()
            assert isinstance(reply, kind)
            return reply

    async def _ready_link(self) -> WorkerLink:
        while self._link is None:
            if self._state == "failed":
                raise EngineError(f"the model worker does not start: {self._last_failure}", hint="run `nsllm doctor`")
            await self._changed.wait()
        return self._link

    def _change(self, state: State) -> None:
        self._state = state
        self._changed.set()
        self._changed = trio.Event()
        self._observer(state, self._restarts)

    def _lost(self, reason: EngineError) -> None:
        """The worker is gone: fail what ran in it, count, and say so."""
        was_ready = self._link is not None
        self._failed_starts = 0 if was_ready else self._failed_starts + 1
        self._next_pause_s = self._pause_s if was_ready else min(2 * self._next_pause_s, MAX_PAUSE_S)
        self._last_failure = reason.message
        self._restarts += 1
        self._unlink()
        log.warning("worker_lost reason=%s restarts=%d", reason.message, self._restarts)
        self._change("failed" if self._failed_starts >= FAILED_STARTS else "restarting")

    def _unlink(self) -> None:
        self._link = None
        self._jobs.end()
        self._recorder.lost()

    async def _run_worker(self) -> None:
        """One worker, from start to death. Raises `EngineError` if none can be started."""
        async with open_worker(self._settings) as link:
            try:
                async with trio.open_nursery() as nursery:
                    for task in (link.run_writer, link.run_pings, link.run_trace):
                        nursery.start_soon(task)
                    self._lost(await self._listen(link))
                    nursery.cancel_scope.cancel()
            finally:
                self._unlink()

    async def _listen(self, link: WorkerLink) -> EngineError:
        """Hand out what the worker says; returns why it ended."""
        limit_s = self._settings.load_limit_s
        while True:
            try:
                messages = await link.receive(limit_s)
            except EngineError as error:
                return error
            for message in messages:
                match message:
                    case Ready():
                        limit_s = self._settings.silence_limit_s
                        self._link = link
                        log.info("worker_ready load_s=%.1f rss_mb=%d", message.load_s, message.rss_bytes >> 20)
                        self._change("ready")
                    case Pong():
                        pass
                    case Step():
                        self._recorder.step(message.load)
                        self._jobs.step(message)
                    case (
                        Started()
                        | PromptTold()
                        | Embedded()
                        | Judged()
                        | Retraced()
                        | Tokenized()
                        | Detokenized()
                        | Refused()
                    ):
                        self._jobs.give(message)
                    case _:
                        assert_never(message)
