"""An engine that writes its answers elsewhere: on an OpenAI-compatible server (vLLM, SGLang, llama-server, Ollama).

Embeddings and judging stay with a local engine, because validators recompute them with the rubric's models. What the
server is asked is the conversation and the sampling parameters that the caller set; the rest is the server's choice.

What is known of such an answer is less than of our own. The server gives no token ids, so there are none: they are
empty, never re-tokenized. No weights can be digested: the model's digest covers the name that the operator declares
and nothing else, so it is a claim, equal on every peer that declares the same name.
"""

from __future__ import annotations

import logging
import random
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, cast

import httpx
import msgspec
import trio

from nsllm import __version__, canonical
from nsllm.governance.ports import JUDGED_TOKENS, Claim, Likelihood, Trace
from nsllm.ids import Digest
from nsllm.node.engine.port import Done, Engine, EngineInfo, EngineRequest, ModelInfo, Piece, Readable
from nsllm.node.engine.slots import Slots
from nsllm.node.engine.upstream_answer import BEFORE_HINT, UpstreamAnswer
from nsllm.node.engine.upstream_request import Post, make_post
from nsllm.node.engine.upstream_wire import PASSING, ListedModel, Listing, refusal
from nsllm.node.errors import EngineError, InvalidRequestError
from nsllm.record import Message, Sampling

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "failed"]
WORST_FIRST: Final[tuple[State, ...]] = ("failed", "starting", "restarting", "ready")
RETRY_PAUSES_S: Final = (0.25, 1.0)
"""Before the second and the third attempt of a request that has no token yet; up to half as long again, by chance."""
CHECK_READY_S: Final = 15.0
CHECK_DOWN_S: Final = 2.0
"""Between two looks at the server."""
MIN_CHECK_S: Final = 0.25
CHECK_LIMIT_S: Final = 10.0
MAX_LISTING_BYTES: Final = 4 << 20
MAX_FAULT_BYTES: Final = 64 << 10
RATE_WINDOW: Final = 16
"""Finished generations that tokens per second are taken from."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server, as its operator's configuration names it."""

    url: str
    """Ends in `/v1`."""
    model: str
    """As the server lists it."""
    key: str = field(default="", repr=False)
    connect_s: float = 5.0
    first_token_s: float = 120.0
    """Longest wait from the request to the first token: the server's queue and the prompt."""
    between_tokens_s: float = 30.0


class _PassingError(Exception):
    """A failure that another attempt may not meet."""

    def __init__(self, error: EngineError) -> None:
        super().__init__(error.message)
        self.error = error


def upstream_digest(model: str) -> Digest:
    """Digest of a model that is known by its name alone; never equal to the digest of a folder."""
    return canonical.digest("model", b"", canonical.pack({"upstream": model}))


class UpstreamEngine:
    """The `Engine` port over a server that speaks OpenAI's API and a local engine that embeds and judges.

    Args:
        local: embeds and judges; its own text model becomes the scorer. Whoever made it runs it.
        upstream: the server.
        max_active: generations that the server runs for us at once.
        max_queue: generations that may wait beside them; more are refused.
        max_wait_s: who would probably wait longer for a place is refused, too; None: no limit.
        max_tokens: length of an answer when the caller sets none.
        rng: for the pauses between attempts.
    """

    def __init__(
        self,
        *,
        local: Engine,
        upstream: Upstream,
        max_active: int,
        max_queue: int,
        max_wait_s: float | None = None,
        max_tokens: int,
        rng: random.Random,
    ) -> None:
        self._local = local
        self._upstream = upstream
        self._max_tokens = max_tokens
        self._rng = rng
        self._slots = Slots(max_active, max_queue, max_wait_s)
        self._finished: deque[tuple[int, float]] = deque(maxlen=RATE_WINDOW)
        self._state: State = "starting"
        self._losses = 0
        self._listed: ListedModel | None = None
        """What the server said of the model when it last listed it."""
        self._problem = "it has not answered yet"
        self._poked = trio.Event()
        self._checked = trio.Event()
        headers = {"Accept-Encoding": "identity", "User-Agent": f"nsllm/{__version__}"}
        if upstream.key:
            headers["Authorization"] = f"Bearer {upstream.key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=upstream.connect_s),  # the other limits are trio's
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_active),
            verify=ssl.create_default_context() if upstream.url.startswith("https:") else True,
            follow_redirects=False,
            trust_env=False,  # no proxy of the environment, no .netrc: the configuration alone says where prompts go
        )

    def info(self) -> EngineInfo:
        """Present state: the worse one of the server's and the local engine's."""
        local = self._local.info()
        tokens = sum(count for count, _ in self._finished)
        seconds = sum(duration for _, duration in self._finished)
        return EngineInfo(
            text=ModelInfo(
                name=self._upstream.model,
                digest=upstream_digest(self._upstream.model),
                dtype="upstream",
                context_tokens=None if self._listed is None else self._listed.context_tokens(),
                defaults=Sampling(),
                upstream=True,
            ),
            encoder=local.encoder,
            scorer=local.scorer or local.text,
            state=min(self._state, local.state, key=WORST_FIRST.index),
            restarts=local.restarts + self._losses,
            active=self._slots.taken,
            queued=self._slots.waiting,
            tokens_per_second=tokens / seconds if seconds > 0 else None,
        )

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the server until cancelled; reports as started at once."""
        task_status.started()
        async with self._client:
            while True:
                await self._check()
                await trio.sleep(MIN_CHECK_S)
                with trio.move_on_after(CHECK_READY_S if self._state == "ready" else CHECK_DOWN_S):
                    await self._poked.wait()
                self._poked = trio.Event()

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[Piece | Done]]:
        """Stream one answer, see `Engine.generate`; leaving the context closes the request at the server.

        Attempts that fail before the first token are made again, at most twice. `Done.sampling` holds what was asked
        for: a parameter that is None there was the server's choice.

        Raises:
            ContextOverflowError: on entering: the server says that the prompt is too long.
            InvalidRequestError: the server refuses the request, or withheld its answer.
            OverloadedError: on entering: our queue is full, or the server's is.
            EngineError: the server is away, slow, or talks nonsense.
        """
        max_tokens = request.sampling.max_tokens or self._max_tokens
        sampling = msgspec.structs.replace(request.sampling, max_tokens=max_tokens)
        return self._generate(replace(request, sampling=sampling))

    async def tokenize(self, request: EngineRequest, *, special: bool) -> tuple[int, ...]:
        """Nobody here knows the server's tokenizer. Raises `InvalidRequestError`."""
        del request, special
        raise InvalidRequestError("an upstream server's tokenizer is not at hand here", hint="ask that server")

    async def detokenize(self, token_ids: Sequence[int], model: Digest | None) -> str:
        """Nobody here knows the server's tokenizer. Raises `InvalidRequestError`."""
        del token_ids, model
        raise InvalidRequestError(
            "an upstream server's tokenizer is not at hand here",
            param="prompt_token_ids",
            hint="send text, or ask that server",
        )

    async def token_strs(self, token_ids: Sequence[int], model: Digest | None) -> tuple[str, ...]:
        """Nobody here knows the server's tokenizer. Raises `InvalidRequestError`."""
        del token_ids, model
        raise InvalidRequestError("an upstream server's tokenizer is not at hand here", hint="ask that server")

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Unit vectors of the local encoder."""
        return await self._local.embed(texts)

    async def embed_counted(
        self, texts: Sequence[Readable], *, most_tokens: int | None = None
    ) -> tuple[list[tuple[float, ...]], int]:
        """Unit vectors of the local encoder and how many tokens it read."""
        return await self._local.embed_counted(texts, most_tokens=most_tokens)

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """Likelihoods under the local scorer model."""
        return await self._local.likelihoods(items, most_tokens=most_tokens)

    def judging(self, scorer: Digest) -> UpstreamEngine | None:
        """This engine, if the local scorer model is the one."""
        return self if self._local.judging(scorer) is not None else None

    def holds(self, model: Digest) -> bool:
        """Whether the local scorer model is the one; nobody can tell of the upstream's."""
        return self._local.holds(model)

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """Read again by the local scorer model."""
        return await self._local.retrace(claim, beside=beside)

    @asynccontextmanager
    async def _generate(self, request: EngineRequest) -> AsyncIterator[UpstreamAnswer]:
        async with self._slots.place(request.client):
            listed = await self._known()
            post = make_post(self._upstream.model, request, listed.owned_by)
            async with AsyncExitStack() as stack:
                yield await self._open(stack, post, request)

    async def _known(self) -> ListedModel:
        """What the server says of the model; the first request may come before the first look."""
        with trio.move_on_after(self._upstream.connect_s):
            while self._listed is None:
                self._poked.set()
                await self._checked.wait()
        if self._listed is None:
            raise EngineError(f"the upstream cannot be used: {self._problem}", hint="check engine.upstream_url")
        return self._listed

    async def _open(self, stack: AsyncExitStack, post: Post, request: EngineRequest) -> UpstreamAnswer:
        """An answer whose first piece is there; `stack` closes it."""
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                async with AsyncExitStack() as attempt:
                    answer = await self._attempt(attempt, post, request)
                    await stack.enter_async_context(attempt.pop_all())
                    return answer
            except _PassingError as passing:
                failure = passing.error
            self._poked.set()
            if pause_s is not None:
                log.info("upstream_retry pause_s=%.2f reason=%s", pause_s, failure.message)
                await trio.sleep(pause_s * (1 + self._rng.random() / 2))
        raise failure

    async def _attempt(self, attempt: AsyncExitStack, post: Post, request: EngineRequest) -> UpstreamAnswer:
        url = f"{self._upstream.url}{post.path}"
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            with trio.fail_after(self._upstream.first_token_s):
                response = await attempt.enter_async_context(
                    self._client.stream("POST", url, content=post.body, headers=headers)
                )
                raw = await attempt.enter_async_context(aclosing(_raw(response)))
                if response.status_code != httpx.codes.OK:
                    error = refusal(
                        response.status_code,
                        await _bounded(raw, MAX_FAULT_BYTES, cut=True),
                        response.headers.get("retry-after"),
                    )
                    if response.status_code in PASSING and isinstance(error, EngineError):
                        raise _PassingError(error)
                    raise error
                _check_stream(response)
                answer = UpstreamAnswer(raw, request, self._upstream.between_tokens_s, self._finished)
                await answer.prime()
                return answer
        except trio.TooSlowError:
            self._poked.set()
            raise EngineError(
                f"the upstream gave no token within {self._upstream.first_token_s:g} s",
                hint="raise engine.upstream_first_token_s if its queue is that long",
            ) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, ssl.SSLError) as error:
            raise _PassingError(
                EngineError(f"the upstream is not reached ({type(error).__name__})", hint="is it running?")
            ) from None
        except httpx.TransportError as error:
            raise _PassingError(
                EngineError(
                    f"the upstream broke off before its first token ({type(error).__name__})",
                    hint=BEFORE_HINT,
                )
            ) from None

    async def _check(self) -> None:
        """Look whether the server lists the model, and keep what comes of it."""
        problem = ""
        try:
            with trio.fail_after(CHECK_LIMIT_S):
                self._listed = await self._look()
        except EngineError as error:
            problem = error.message
        except trio.TooSlowError:
            problem = f"it did not list its models within {CHECK_LIMIT_S:g} s"
        if problem and self._state == "ready":
            self._losses += 1
            self._state = "restarting"
        elif not problem:
            self._state = "ready"
        if problem != self._problem:
            log.log(
                logging.WARNING if problem else logging.INFO,
                "upstream_%s url=%s reason=%s",
                self._state,
                self._upstream.url,
                problem or "-",
            )
        self._problem = problem
        self._checked.set()
        self._checked = trio.Event()

    async def _look(self) -> ListedModel:
        try:
            async with self._client.stream("GET", f"{self._upstream.url}/models") as response:
                if response.status_code != httpx.codes.OK:
                    raise EngineError(f"its list of models is an answer with HTTP {response.status_code}")
                async with aclosing(_raw(response)) as raw:
                    body = await _bounded(raw, MAX_LISTING_BYTES, cut=False)
        except (httpx.TransportError, ssl.SSLError) as error:
            raise EngineError(f"it is not reached ({type(error).__name__})") from None
        try:
            listing = msgspec.json.decode(body, type=Listing)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineError(f"its list of models is {len(body)} bytes that are no such list") from None
        for model in listing.data:
            if model.id == self._upstream.model:
                return model
        raise EngineError(f"it does not list model {self._upstream.model!r}, but {len(listing.data)} others")


def _raw(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes; httpx makes it by a generator, which must be closed."""
    return cast("AsyncGenerator[bytes, None]", response.aiter_raw())


def _check_stream(response: httpx.Response) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = response.headers.get("content-encoding", "identity").lower()
    if kind != "text/event-stream" or encoding != "identity":
        raise EngineError(
            f"the upstream answers with {kind[:64]!r} ({encoding[:32]}) instead of an event stream",
            hint="engine.upstream_url must be an OpenAI-compatible API that streams",
        )


async def _bounded(raw: AsyncIterator[bytes], limit_bytes: int, *, cut: bool) -> bytes:
    """The whole body, or with `cut` its first `limit_bytes`.

    Raises:
        EngineError: the body is longer, without `cut`.
    """
    body = bytearray()
    async for chunk in raw:
        body += chunk
        if len(body) > limit_bytes:
            if cut:
                break
            raise EngineError(f"its answer is longer than {limit_bytes >> 20} MiB")
    return bytes(body[:limit_bytes])
