"""The Engine port: what the peer asks of whatever runs its models.

Implementations: `nsllm.node.engine.supervisor` (torch in a worker process), `nsllm.node.engine.upstream` (answers come
from an OpenAI-compatible server) and `nsllm.simulations.standin` (declares itself a stand-in). The engine sees
conversations and parameters, never peers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nsllm.governance.ports import JudgeModels
from nsllm.ids import Digest
from nsllm.node.engine.stats import EngineStats
from nsllm.record import Guide, Message, Rendering, Request, Sampling, Tool


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that is loaded."""

    name: str
    digest: Digest
    """Over configuration, tokenizer, weights and dtype; of an upstream's model over its declared name only."""
    dtype: str
    context_tokens: int | None
    """None: an upstream that does not say."""
    defaults: Sampling
    """The model card's sampling parameters; an upstream keeps its own."""
    kin: tuple[Digest, ...] = ()
    """What the same files are called where they run in other numbers."""
    sees: bool = False
    """Whether it takes pictures as they are; a model that does not reads descriptions of them."""
    stand_in: bool = False
    """True for a stand-in of a simulation: shown wherever the model is named."""
    upstream: bool = False
    """True for a model that another server runs: what is said of it is that server's operator's claim."""


State = Literal["starting", "ready", "restarting", "failed"]
Readable = str | tuple[int, ...]
"""What an encoder reads: a text, or token ids of its own."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A text model that answers requests, among others perhaps."""

    model: ModelInfo
    state: State
    active: int
    queued: int
    memory_mb: int | None = None
    """What its worker takes, as estimated from its files; None: not known."""
    removable: bool = True
    """False for the model of the start, which judges answers."""
    stats: EngineStats | None = None
    """Of its worker; None where another server or nobody runs it."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine runs, for requests and the status page."""

    text: ModelInfo
    """The model that answers where a request does not say."""
    encoder: ModelInfo
    state: State
    restarts: int
    active: int
    """Generations that run now."""
    queued: int
    tokens_per_second: float | None
    """Of one stream, over the last finished generations; None before the first."""
    stats: EngineStats | None = None
    """Of the text model's worker here; None where another server or nobody runs it."""
    scorer: ModelInfo | None = None
    """What judges, where that is not the text model."""
    loaded: tuple[LoadedModel, ...] = ()
    """All text models, the default one first, of an engine that loads and unloads them; else empty."""

    def texts(self) -> tuple[LoadedModel, ...]:
        """All text models that answer, the default one first."""
        if self.loaded:
            return self.loaded
        return (LoadedModel(self.text, self.state, self.active, self.queued, removable=False, stats=self.stats),)

    def named(self, name: str) -> ModelInfo | None:
        """The text model that a request calls so; `default` is the default one."""
        found = (row.model for row in self.texts() if row.model.name == name)
        return self.text if name == "default" else next(found, None)

    def serving(self, digest: Digest) -> LoadedModel | None:
        """The text model with this digest, if it is loaded."""
        return next((row for row in self.texts() if row.model.digest == digest), None)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation that is asked of an engine."""

    messages: tuple[Message, ...]
    sampling: Sampling
    form: Literal["chat", "text"] = "chat"
    """`text`: the only message is the prompt as it stands."""
    prompt_token_ids: tuple[int, ...] = field(default=(), repr=False)
    """Of a text that reads otherwise; empty: the prompt is the text's own tokens."""
    tools: tuple[Tool, ...] = ()
    guide: Guide | None = None
    rendering: Rendering | None = None
    images: tuple[bytes, ...] = field(default=(), repr=False)
    """PNG files for a model that sees, in the order of their places in the messages."""
    top_logprobs: int | None = None
    """How many alternatives are told with each token; None: not even the token's own probability."""
    prompt_logprobs: int | None = None
    """How many alternatives are told with each token of the prompt; None: nothing is told of it."""
    client: str = ""
    """Who asks, in any words: waiting generations are started in turns between clients."""
    model: Digest | None = None
    """Which text model, for an engine that has several; None: the default one."""

    @classmethod
    def of(cls, request: Request, *, client: str = "") -> EngineRequest:
        """What a cacheable request asks of the engine."""
        return cls(
            messages=request.messages,
            sampling=request.sampling,
            form=request.form,
            prompt_token_ids=request.prompt_token_ids,
            tools=request.tools,
            guide=request.guide,
            rendering=request.rendering,
            client=client,
            model=request.model_digest,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's natural log-probability under the distribution before sampling parameters, as OpenAI reports it."""

    token: bytes
    """What the token spells; not always whole characters."""
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()
    """The most likely tokens in its place, most likely first."""


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt, and how likely the model finds it after those before it."""

    token_id: int
    token: bytes
    """As in `TokenLogprob`."""
    start: int
    """Characters of the prompt's text before it."""
    logprob: float | None
    """None: nothing comes before it."""
    rank: int = 0
    """1: no token is likelier in its place; 0: nothing comes before it."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """The most likely tokens in its place, most likely first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens as they come; `text` is complete UTF-8 and may be empty while a character is unfinished."""

    token_ids: tuple[int, ...]
    """Empty: unknown, see `Done.counted`."""
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if they were asked for."""
    prompt: tuple[PromptToken, ...] = ()
    """Tokens of the prompt that were read since, if they were asked for: all of them before the answer's first."""
    prompt_tokens: int | None = None
    """How many the prompt has, with the first piece; None: not known before the end, or told already."""


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of a generation."""

    finish_reason: Literal["stop", "length"]
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    """Effective parameters: every field set, a drawn seed if none was given; None where an upstream chose."""
    counted: tuple[int, int] | None = None
    """(prompt, completion) tokens as an upstream counts them, which gives no ids; None: the ids say it."""

    def usage(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """(prompt, completion) tokens of an answer with these ids; zeros where nobody counted."""
        return self.counted or (len(self.prompt_token_ids), len(token_ids))


class Engine(JudgeModels, Protocol):
    """Runs the text model and the encoder. Embedding and judging never wait for a generation to end."""

    def info(self) -> EngineInfo:
        """Present state; cheap."""
        ...

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[Piece | Done]]:
        """Stream one answer; leaving the context cancels it in the worker within one step.

        Raises (on entering or while iterating):
            ContextOverflowError: the prompt plus one token does not fit the model's context; says both numbers.
            OverloadedError: the queue is full.
            InvalidRequestError: the engine cannot do what is asked, such as images for a model that does not see; names
                the parameter.
            EngineError: the worker died; it is being restarted.
        """
        ...

    async def tokenize(self, request: EngineRequest, *, special: bool) -> tuple[int, ...]:
        """Tokens of a request's prompt as `generate` would read it, whether they fit the context or not.

        Args:
            request: messages, form, tools and model count.
            special: of a text, with the tokens that the tokenizer puts before one.

        Raises:
            InvalidRequestError: the chat template refuses the conversation, or the tokenizer is not at hand here.
            EngineError: the worker died.
        """
        ...

    async def detokenize(self, token_ids: Sequence[int], model: Digest | None) -> str:
        """Text that tokens of a model (None: the default one) spell, special ones left out.

        Raises:
            InvalidRequestError: the tokenizer is not at hand here, or an id is none of its tokens'.
            EngineError: the worker died.
        """
        ...

    async def token_strs(self, token_ids: Sequence[int], model: Digest | None) -> tuple[str, ...]:
        """Each token as the model's vocabulary writes it, such as `Ġthe`. Raises as `detokenize`."""
        ...

    async def embed_counted(
        self, texts: Sequence[Readable], *, most_tokens: int | None = None
    ) -> tuple[list[tuple[float, ...]], int]:
        """Unit vectors and how many tokens were read, for `/v1/embeddings`.

        Args:
            texts: or token ids of the encoder's, which are read as they are.
            most_tokens: of each that are read, from the beginning; None: as many as the encoder takes.

        Raises:
            InvalidRequestError: an id is none of the encoder's tokens'.
            EngineError: the worker died.
        """
        ...
